"""How many requests a caller may send: a token bucket for each of them."""

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache

from ingot.serve.access.scopes import Principal
from ingot.serve.endpoint import Rate
from ingot.serve.problems import RequestError

_IPV6_NETWORK = 64  # a host has all of these addresses to itself


class RateLimits:
    """Buckets of the callers of one server. Used on its event loop only.

    A bucket is kept as one number, the time at which it is full again (the virtual scheduling form
    of the generic cell rate algorithm, ITU-T I.371): a request moves it on by 1 / rate, and is
    refused if that is further ahead than the burst allows. A refusal costs the caller nothing more.

    Args:
        rate: Of callers that have none of their own; None lets those send what they like.
        clock: Seconds that never run backwards.
        most: Callers that are remembered; the least recent of more are forgotten, to their favour.
    """

    def __init__(
        self,
        rate: Rate | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = 65_536,
    ) -> None:
        self.rate, self._clock, self._most = rate, clock, most
        self._full_at: dict[str, float] = {}

    def take(self, caller: Principal | None, address: str) -> None:
        """Count one request.

        Args:
            caller: Who sends it, if callers prove who they are.
            address: Where it comes from, by which callers are told apart otherwise.

        Raises:
            RequestError: The caller has sent too many (429); `wait_s` is how long until one more
                is taken.
        """
        rate = self.rate if caller is None or caller.rate is None else caller.rate
        if rate is None:
            return
        who = network_of(address) if caller is None else f"key {caller.id or caller.name}"
        now, step_s = self._clock(), 1.0 / rate.per_s
        full_at = max(now, self._full_at.pop(who, now)) + step_s
        wait_s = full_at - now - rate.depth * step_s
        if wait_s > 1e-9:  # less is what the arithmetic rounds
            self._full_at[who] = full_at - step_s
            raise RequestError(
                f"A caller may send {rate.per_s:g} requests a second, {rate.depth:g} at once; this "
                f"one sent more. Send the next in {wait_s:.3g} s.",
                status=429,
                wait_s=wait_s,
            )
        self._full_at[who] = full_at
        if len(self._full_at) > self._most:
            del self._full_at[next(iter(self._full_at))]


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return what tells one host from another: an IPv4 address, or the network of an IPv6 one.

    Examples:
        >>> network_of("192.0.2.7"), network_of("2001:db8::1:2"), network_of("::ffff:192.0.2.7")
        ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_NETWORK), strict=False))


def address_of(client: tuple[str, int] | None) -> str:
    """Return the address of a caller as the server knows it, empty where it does not."""
    return client[0] if client else ""
