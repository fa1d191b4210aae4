"""Rates: each caller gets what its bucket holds, and the true time to wait for more."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outside import Clock

from ingot.core.errors import ServeError
from ingot.serve.access import rates
from ingot.serve.access.keys import KeyStore
from ingot.serve.access.rates import RateLimits, address_of, network_of
from ingot.serve.access.scopes import Principal
from ingot.serve.endpoint import Access, Rate
from ingot.serve.problems import RequestError
from ingot.serve.server import serve_in_thread

INFER = "/v2/models/doubler/infer"


@pytest.fixture
def clock():
    return Clock()


def wait_of(limits, caller=None, address="192.0.2.1"):
    """Return 0 for a request that is taken, and the seconds to wait otherwise."""
    try:
        limits.take(caller, address)
    except RequestError as error:
        return error.wait_s if error.status == 429 else None
    return 0


def test_a_burst_is_taken_and_the_next_waits_for_one_step(clock):
    limits = RateLimits(Rate(2, burst=3), clock=clock)

    assert [wait_of(limits) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]


def test_the_wait_that_is_told_is_long_enough_and_not_too_long(clock):
    limits = RateLimits(Rate(0.25, burst=1), clock=clock)
    wait_of(limits)
    clock.now += 1.0
    wait_s = wait_of(limits)

    assert wait_s == 3.0
    clock.now += wait_s - 0.01
    assert wait_of(limits) == pytest.approx(0.01)
    clock.now += 0.01
    assert wait_of(limits) == 0


@given(
    per_s=st.floats(0.1, 1000), burst=st.floats(1, 50),
    gaps=st.lists(st.floats(0, 5), min_size=1, max_size=60),
)  # fmt: skip
def test_it_takes_what_a_bucket_of_tokens_would(per_s, burst, gaps):
    clock = Clock()
    limits = RateLimits(Rate(per_s, burst), clock=clock)
    tokens, found, expected = burst, [], []
    for gap in gaps:
        clock.now += gap
        tokens = min(burst, tokens + gap * per_s)
        near = abs(tokens - round(tokens)) < 1e-6  # where rounding decides, either is right
        taken = wait_of(limits) == 0
        if near:
            tokens -= taken
            continue
        found.append(taken)
        expected.append(tokens >= 1)
        tokens -= tokens >= 1

    assert found == expected


def test_callers_have_buckets_of_their_own_and_keys_rates_of_their_own(clock):
    limits = RateLimits(Rate(1), clock=clock)
    plain, other = Principal("a", frozenset(), "1"), Principal("a", frozenset(), "2")
    fast = Principal("b", frozenset(), "3", Rate(10, burst=2))

    first = [wait_of(limits, caller) for caller in (plain, other, fast, fast, None)]
    second = [wait_of(limits, caller) for caller in (plain, other, fast, None)]

    assert first == [0, 0, 0, 0, 0]
    assert second == pytest.approx([1.0, 1.0, 0.1, 1.0])
    assert wait_of(limits, address="192.0.2.2") == 0


def test_a_key_may_have_a_rate_where_others_have_none(clock):
    limits = RateLimits(None, clock=clock)
    slow = Principal("a", frozenset(), "1", Rate(1))

    assert [wait_of(limits, slow) for _ in range(2)] == [0, 1.0]
    assert [wait_of(limits) for _ in range(100)] == [0] * 100


def test_a_host_cannot_change_its_address_within_its_network(clock):
    limits = RateLimits(Rate(1), clock=clock)

    assert wait_of(limits, address="2001:db8::1") == 0
    assert wait_of(limits, address="2001:db8::ffff:2") == 1.0
    assert wait_of(limits, address="2001:db8:0:1::1") == 0
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert address_of(None) == ""


def test_the_least_recent_caller_is_forgotten_first_and_memory_is_bounded(clock):
    limits = RateLimits(Rate(1), clock=clock, most=2)
    for address in ("a", "b", "a", "c"):
        wait_of(limits, address=address)

    assert len(limits._full_at) == 2
    assert wait_of(limits, address="a") == 1.0
    assert wait_of(limits, address="b") == 0


@pytest.mark.parametrize(
    ("per_s", "burst"), [(0, None), (-1, None), (1, 0.5), (float("nan"), None), (5, float("inf"))]
)
def test_a_rate_that_limits_nothing_or_everything_is_refused(per_s, burst):
    with pytest.raises(ServeError, match="above 0 requests a second"):
        Rate(per_s, burst)


def test_a_caller_beyond_its_rate_gets_429_with_whole_seconds_that_suffice(
    endpoint, doubler, body, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(rates.RateLimits.__init__, "__kwdefaults__", {"clock": clock, "most": 9})
    limited = replace(endpoint, rate=Rate(0.4, burst=2))
    with (
        serve_in_thread(limited, doubler) as running,
        httpx.Client(base_url=running.url, trust_env=False) as client,
    ):
        statuses = [client.post(INFER, json=body).status_code for _ in range(2)]
        refused = client.post(INFER, json=body)
        page = client.get("/v2/models/doubler")
        health = client.get("/v2/health/ready")
        clock.now += int(refused.headers["retry-after"])
        after = client.post(INFER, json=body)

    assert statuses == [200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
    assert refused.headers["content-type"] == "application/problem+json"
    assert "0.4 requests a second" in refused.json()["detail"]
    assert "in 2.5 s" in refused.json()["detail"]
    assert (page.status_code, page.headers["retry-after"]) == (429, "3")
    assert (health.status_code, after.status_code) == (200, 200)


def test_a_keys_own_rate_holds_on_a_server_without_one(endpoint, doubler, body, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    slow, free = (store.create(n, ["*"], rate=r)[0] for n, r in (("s", Rate(0.01)), ("f", None)))
    locked = replace(endpoint, access=Access(keys=tmp_path / "keys.sqlite"))
    with serve_in_thread(locked, doubler) as running:

        def ask(key):
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(running.url + INFER, json=body, headers=headers, trust_env=False)

        statuses = [ask(key).status_code for key in (slow, slow, free, free, free)]

    assert statuses == [200, 429, 200, 200, 200]


def test_a_caller_over_grpc_shares_its_bucket_with_rest(endpoint, doubler, body):
    pytest.importorskip("grpc")
    import grpc

    from ingot.serve.rpc.messages import SERVICE, messages

    limited = replace(endpoint, rate=Rate(0.01, burst=1), grpc_port=0)
    with serve_in_thread(limited, doubler) as running:
        httpx.post(running.url + INFER, json=body, trust_env=False)
        kinds = messages()
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            ask = channel.unary_unary(
                f"/{SERVICE}/ModelMetadata",
                request_serializer=kinds["ModelMetadataRequest"].SerializeToString,
                response_deserializer=kinds["ModelMetadataResponse"].FromString,
            )
            with pytest.raises(grpc.RpcError) as refusal:
                ask(kinds["ModelMetadataRequest"](name="doubler"), timeout=10)

    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_store_of_keys_without_rates_gets_room_for_them(tmp_path):
    path = tmp_path / "keys.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL,"
            " scopes TEXT NOT NULL, created REAL NOT NULL, expires REAL, revoked REAL)"
        )
        database.execute("INSERT INTO keys VALUES ('i', 'old', x'00', '[\"*\"]', 1, NULL, NULL)")
        database.commit()

    store = KeyStore(path)
    store.create("new", ["*"], rate=Rate(5))

    assert [(key.name, key.rate) for key in store.all()] == [("old", None), ("new", Rate(5))]
