"""Digests: equal values have equal digests, on every machine."""

import hashlib
import json
from collections.abc import Mapping, Sequence

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def canonical_json(value: Json) -> bytes:
    """Return the one byte string that stands for `value`: sorted keys, no spaces, UTF-8.

    Floats are written in Python's shortest form that reads back to the same number. NaN and
    infinities have no JSON form.

    Raises:
        ValueError: `value` holds a NaN or an infinity.

    Examples:
        >>> canonical_json({"b": 1, "a": [True, None, 0.1]})
        b'{"a":[true,null,0.1],"b":1}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 digest of `data` in OCI form, `sha256:<64 hex digits>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Json) -> str:
    """Return the digest of the canonical JSON of `value`.

    Examples:
        >>> digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
        True
    """
    return digest_bytes(canonical_json(value))


def short(digest: str) -> str:
    """Return the first twelve hex digits of a digest, for people.

    Examples:
        >>> short("sha256:3f9a1c77b0e2aa55")
        '3f9a1c77b0e2'
    """
    return digest.removeprefix("sha256:")[:12]


def hex_of(digest: str) -> str:
    """Return the bare hex digits of a digest, as in-toto and file names want them."""
    return digest.removeprefix("sha256:")
