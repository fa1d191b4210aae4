"""Room for large bodies of requests: what all callers of a server together may fill."""

import math
import threading

from ingot.core.errors import ServeError
from ingot.runtime.machine import memory_bytes
from ingot.serve.problems import RequestError

# what the web server may hold of any connection by itself; such bodies find room in any crowd
SMALL_BYTES = 64 * 1024
_PART = 8  # of the memory: JSON takes several times its size while it is read


class Room:
    """Bytes of bodies that one server holds. May be used by several threads.

    Args:
        most: Bytes that it may hold.

    Attributes:
        used: Bytes that it holds.
    """

    def __init__(self, most: float = math.inf) -> None:
        self.used, self._most, self._lock = 0, most, threading.Lock()

    @classmethod
    def of(cls, largest: int, asked: int | None) -> "Room":
        """Return the room of a server: what is asked for, or an eighth of the memory.

        The largest body always finds room while there is no other.

        Args:
            largest: Bytes that a body may have.
            asked: Bytes of all together; None leaves it to the memory.

        Raises:
            ServeError: It is asked for less than the largest body.
        """
        if asked is not None and asked < largest:
            raise ServeError(
                f"max_in_flight_bytes must hold the largest body, {largest:,} bytes; got {asked:,}."
                " Raise it (--max-in-flight-mb), or lower max_body_bytes (--max-body-mb)."
            )
        return cls(asked or max(largest, (memory_bytes() or 0) // _PART))

    def take(self, size: int) -> None:
        """Keep room for some bytes, until they are given back.

        Raises:
            RequestError: There is none (503).
        """
        if not self.has_taken(size):
            raise RequestError(
                f"Bodies of requests must take at most {self._most:,} bytes together; "
                f"{self.used:,} are taken and this one has {size:,} more. Send it again later, or "
                "raise max_in_flight_bytes (--max-in-flight-mb).",
                status=503,
            )

    def has_taken(self, size: int) -> bool:
        """Keep room for some bytes, until they are given back; say whether there was any."""
        with self._lock:
            is_there = self.used + size <= self._most
            self.used += size if is_there else 0
        return is_there

    def give(self, size: int) -> None:
        """Give back what was taken."""
        if size:
            with self._lock:
                self.used -= size
