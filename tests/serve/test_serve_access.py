import asyncio
import json
import logging
import socket
import ssl
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import httpx
import pytest
from certificates import make_certificate
from outside import Clock

from ingot.core.errors import MissingExtraError, ServeError
from ingot.observe.log import ObservationLog
from ingot.serve.access.keys import KeyRing, KeyStore
from ingot.serve.access.scopes import Principal, check_scopes
from ingot.serve.access.tokens import TokenVerifier
from ingot.serve.endpoint import Access, Tls, Tokens
from ingot.serve.server import serve_in_thread

INFER = "/v2/models/doubler/infer"


@pytest.fixture
def store(tmp_path):
    return KeyStore(tmp_path / "keys.sqlite")


@pytest.fixture
def locked(endpoint, store, doubler):
    """An endpoint that asks for keys, served; make a key with `key(scope, ...)`."""
    access = Access(keys=store._path)
    with serve_in_thread(replace(endpoint, access=access), doubler) as running:
        client = httpx.Client(base_url=running.url, trust_env=False, timeout=10)

        def headers(*scopes, **more):
            return {"authorization": f"Bearer {store.create('robot', scopes, **more)[0]}"}

        yield SimpleNamespace(http=client, headers=headers, running=running, store=store)
        client.close()


def test_a_key_opens_what_its_scope_says(locked, body):
    headers = locked.headers("infer:doubler")
    time.sleep(1.05)  # a running server looks for new keys once a second

    infer = locked.http.post(INFER, json=body, headers=headers)
    read = locked.http.get("/v2/models/doubler", headers=headers)
    metrics = locked.http.get("/metrics", headers=headers)
    other = locked.http.post("/v2/models/other/infer", json=body, headers=headers)

    assert (infer.status_code, read.status_code) == (200, 200)
    assert (metrics.status_code, other.status_code) == (403, 403)
    assert "allowed metrics" in metrics.json()["detail"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Basic abc",
        "Bearer ingot_1_2",
        "Bearer ingot_",
        "Bearer ingot",
    ],
)
def test_without_a_valid_key_there_is_nothing_but_health(locked, body, value):
    headers = {} if value is None else {"authorization": value}

    infer = locked.http.post(INFER, json=body, headers=headers)
    pages = [locked.http.get(p, headers=headers) for p in ("/v2/models/doubler", "/metrics")]
    health = locked.http.get("/v2/health/ready", headers=headers)

    assert [answer.status_code for answer in (infer, *pages)] == [401, 401, 401]
    assert infer.headers["www-authenticate"] == "Bearer"
    assert pages[0].headers["www-authenticate"] == "Bearer"
    assert health.status_code == 200


def test_the_log_names_the_key_and_never_holds_it(endpoint, doubler, store, body, caplog):
    text, key = store.create("robot", ["infer:*"])
    caplog.set_level(logging.DEBUG)
    access = Access(keys=store._path)
    with serve_in_thread(replace(endpoint, access=access), doubler) as running:
        good = {"authorization": f"Bearer {text}"}
        bad = {"authorization": f"Bearer {text}x"}
        for headers in (good, bad):
            httpx.post(running.url + INFER, json=body, headers=headers, trust_env=False)

    with ObservationLog(endpoint.log) as log:
        seen = list(log.read())
    secret = text.rsplit(key.id, 1)[1].lstrip("_")
    assert [(o.status, o.client) for o in seen] == [(200, "robot"), (401, "")]
    assert secret not in caplog.text
    assert secret.encode() not in endpoint.log.read_bytes()
    assert secret.encode() not in store._path.read_bytes()


def test_a_revoked_key_is_noticed_by_a_ring_that_is_open(store):
    clock = Clock()
    text, key = store.create("robot", ["*"], days=None)
    ring = KeyRing(store._path, clock=clock)

    before = ring.find(text)
    store.revoke(key.id)
    clock.now += 1.0
    after = ring.find(text)
    ring.close()

    assert before == Principal("robot", frozenset({"*"}))
    assert after is None


def test_a_key_ends_when_it_expires(tmp_path):
    clock = Clock()
    store = KeyStore(tmp_path / "keys.sqlite", clock=clock)
    text, _ = store.create("robot", ["*"], days=2)
    ring = KeyRing(tmp_path / "keys.sqlite", clock=clock)

    clock.now += 2 * 86400 - 1
    before = ring.find(text)
    clock.now += 1
    after = ring.find(text)
    ring.close()

    assert before is not None
    assert after is None


def test_a_clock_that_jumps_back_does_not_stop_revocation(store):
    clock = Clock()
    text, key = store.create("robot", ["*"], days=None)
    ring = KeyRing(store._path, clock=clock)
    store.revoke(key.id)
    clock.now -= 3600

    assert ring.find(text) is None
    ring.close()


def test_only_the_owner_may_read_the_store(store):
    assert store._path.stat().st_mode & 0o777 == 0o600


def test_an_unknown_key_cannot_be_revoked(store):
    with pytest.raises(ServeError, match="No key has the id"):
        store.revoke("abc")


@pytest.mark.parametrize("days", [0, -1])
def test_a_key_must_live(store, days):
    with pytest.raises(ServeError, match="more than 0 days"):
        store.create("robot", ["*"], days=days)


@pytest.mark.parametrize(
    "scope", ["", "infer", "infer:", "write:x", "infer:a*b", "metrics:x", "*:x"]
)
def test_words_that_are_no_scope_are_refused(scope):
    with pytest.raises(ServeError, match="A scope must be"):
        check_scopes([scope])


def test_no_scope_at_all_is_refused():
    with pytest.raises(ServeError, match="A scope must be"):
        check_scopes([])


@pytest.mark.parametrize(
    ("scope", "action", "model", "is_allowed"),
    [
        ("*", "infer", "a", True), ("*", "metrics", "", True),
        ("infer:a", "infer", "a", True), ("infer:a", "infer", "ab", False),
        ("infer:a*", "infer", "ab", True), ("infer:a*", "infer", "b", False),
        ("infer:a", "read", "a", True), ("read:a", "infer", "a", False),
        ("infer:*", "metrics", "", False), ("metrics", "metrics", "", True),
        ("metrics", "infer", "metrics", False),
    ],
)  # fmt: skip
def test_a_scope_allows_what_it_names_and_nothing_else(scope, action, model, is_allowed):
    assert Principal("p", frozenset({scope})).may(action, model) is is_allowed


def test_a_certificate_that_is_none_is_refused_before_anything_is_opened(endpoint, tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    tls = Tls(tmp_path / "c.pem", tmp_path / "c.pem")

    with pytest.raises(ServeError, match="PEM files that belong together"):
        serve_in_thread(replace(endpoint, tls=tls))


def test_an_endpoint_with_a_certificate_speaks_https_only(endpoint, doubler, tmp_path, body):
    tls = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(tls.certificate))
    with serve_in_thread(replace(endpoint, tls=tls), doubler) as running:
        answer = httpx.post(running.url + INFER, json=body, verify=context, trust_env=False)
        plain = running.url.replace("https", "http")
        with pytest.raises(httpx.TransportError):
            httpx.get(plain + "/v2/health/live", trust_env=False)

    assert running.url.startswith("https://127.0.0.1:")
    assert answer.status_code == 200


def test_tokens_without_their_library_name_the_extra(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "jwt", None)
    access = Access(tokens=Tokens("https://id", "ingot", "jwks.json"))

    with pytest.raises(MissingExtraError, match=r"ingot\[oidc\]"):
        serve_in_thread(replace(endpoint, access=access), object())


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def provider(tmp_path):
    """An identity provider: makes tokens; its public keys are in a file."""
    jwt = pytest.importorskip("jwt")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    private = rsa.generate_private_key(65537, 2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    odd = {"kty": "NEW", "kid": "odd"}
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [odd, public | {"kid": "k1", "use": "sig"}]}))

    def token(key=private, algorithm="RS256", kid="k1", **claims):
        base = {
            "iss": "https://id", "aud": "ingot", "sub": "team-a", "scope": "infer:doubler",
            "exp": time.time() + 60,
        }  # fmt: skip
        claims = {k: v for k, v in (base | claims).items() if v is not None}
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})

    return SimpleNamespace(
        token=token, settings=Tokens("https://id", "ingot", str(file)), file=file, private=private
    )


@pytest.fixture
def ask_with(endpoint, doubler, provider, body):
    """Return the status that each token gets."""

    def ask(tokens):
        access = Access(tokens=provider.settings)
        with serve_in_thread(replace(endpoint, access=access), doubler) as running:
            return [
                httpx.post(
                    running.url + INFER, json=body, trust_env=False,
                    headers={"authorization": f"Bearer {token}"},
                ).status_code
                for token in tokens
            ]  # fmt: skip

    return ask


def test_a_token_of_the_provider_opens_what_its_scope_says(ask_with, provider):
    tokens = [provider.token(), provider.token(), provider.token(scope=None, scp=["read:doubler"])]

    assert ask_with(tokens) == [200, 200, 403]


def test_tokens_that_are_not_for_us_or_not_from_there_are_refused(ask_with, provider):
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    stranger = rsa.generate_private_key(65537, 2048)
    tokens = [
        provider.token(aud="other"), provider.token(iss="https://evil"),
        provider.token(exp=time.time() - 60), provider.token(exp=None), provider.token(sub=None),
        provider.token(nbf=time.time() + 60), provider.token(key=stranger),
        provider.token(kid="odd"), provider.token(kid="gone"),
        provider.token(key="x" * 64, algorithm="HS256"), "a.b.c", provider.token()[:-4] + "AAAA",
    ]  # fmt: skip

    assert set(ask_with(tokens)) == {401}


def test_a_public_key_does_not_pass_for_a_shared_secret(ask_with, provider):
    import base64
    import hashlib
    import hmac

    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    _, payload, _ = provider.token().encode().split(b".")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    pem = provider.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    forged = []
    for algorithm, key in (("HS256", pem), ("none", None)):
        head = part(json.dumps({"alg": algorithm, "kid": "k1", "typ": "JWT"}).encode())
        signed = head + b"." + payload
        mark = part(hmac.new(key, signed, hashlib.sha256).digest()) if key else b""
        forged.append((signed + b"." + mark).decode())

    assert ask_with(forged) == [401, 401]


@pytest.mark.parametrize("content", ["{", "[]", '{"keys": []}', '{"keys": [{"kty": "NEW"}]}'])
def test_a_provider_without_usable_keys_is_refused_at_the_start(endpoint, provider, content):
    provider.file.write_text(content)

    with pytest.raises(ServeError, match="JSON Web Key Set"):
        serve_in_thread(replace(endpoint, access=Access(tokens=provider.settings)), object())


def test_keys_are_fetched_from_loopback_or_by_https_only(endpoint, provider):
    for where in ("http://192.0.2.1/jwks", "file:///etc/passwd"):
        settings = replace(provider.settings, jwks=where)
        with pytest.raises(ServeError, match="JSON Web Key Set"):
            serve_in_thread(replace(endpoint, access=Access(tokens=settings)), object())


@pytest.fixture
def jwks_server(provider):
    """The provider's keys at an address on loopback; counts how often they are read."""
    reads = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self):
            reads.append(self.path)
            body = provider.file.read_bytes()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            return

    server = HTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/jwks", reads=reads)
    server.shutdown()
    server.server_close()


def test_a_key_that_the_provider_adds_is_fetched_when_a_token_names_it(provider, jwks_server):
    clock = Clock()
    clock.now = time.time()
    verifier = TokenVerifier(replace(provider.settings, jwks=jwks_server.url), clock=clock)
    old = json.loads(provider.file.read_text())
    new = [row | {"kid": "k2"} for row in old["keys"] if row["kid"] == "k1"]
    provider.file.write_text(json.dumps({"keys": new}))
    token = provider.token(kid="k2")

    early = asyncio.run(verifier.find(token))
    clock.now += 61
    found = asyncio.run(verifier.find(token))
    again = asyncio.run(verifier.find(token))
    unknown = asyncio.run(verifier.find(provider.token(kid="k3")))

    assert early is None
    assert found == again == Principal("team-a", frozenset({"infer:doubler"}))
    assert unknown is None
    assert len(jwks_server.reads) == 2


def test_keys_that_cannot_be_read_again_leave_those_that_were(provider):
    clock = Clock()
    clock.now = time.time()
    verifier = TokenVerifier(provider.settings, clock=clock)
    provider.file.unlink()
    clock.now += 61

    unknown = asyncio.run(verifier.find(provider.token(kid="k9")))
    known = asyncio.run(verifier.find(provider.token()))

    assert unknown is None
    assert known is not None


def test_a_token_that_was_seen_is_not_taken_beyond_its_end(provider):
    clock = Clock()
    clock.now = time.time()
    verifier = TokenVerifier(provider.settings, clock=clock)
    token = provider.token(exp=time.time() - 8)  # within the seconds that clocks may differ

    first = asyncio.run(verifier.find(token))
    clock.now += 0.1
    (_, until), *_ = verifier._kept.values()

    assert first is not None
    assert until <= clock.now


def test_the_document_shows_each_caller_only_what_it_may_read(locked, store):
    headers = [locked.headers(scope) for scope in ("infer:doubler", "metrics")]
    time.sleep(1.05)

    paths = [list(locked.http.get("/openapi.json", headers=h).json()["paths"]) for h in headers]

    assert "/v2/models/doubler/infer" in paths[0]
    assert not [path for path in paths[1] if "doubler" in path]
    assert locked.http.get("/openapi.json").status_code == 401
