"""Rules of the observation log: which requests are kept, what of them, and for how long."""

import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ingot.core.digest import Json, digest_json
from ingot.core.errors import ServeError
from ingot.core.files import read_secret
from ingot.core.names import suggest
from ingot.observe.observation import Observation

Redaction = Literal["keep", "drop", "hash"]
_HASHABLE = (
    "request_id", "unit_key", "inputs_ref", "output_ref", "client", "region", "stratum_class",
    "action", "human_label", "episode_id",
)  # fmt: skip
_DROPPABLE = (*_HASHABLE, "score", "uncertainty", "outcome")
_DEFAULTS = {f.name: f.default for f in fields(Observation)} | {"request_id": ""}
_KEY_BYTES, _DIGEST_BYTES, _PERSON_BYTES = 32, 16, 16  # the last is BLAKE2's own limit
_LEAST_BYTES = 1024 * 1024
_DAY_S, _MIB = 86_400.0, 1024 * 1024
FIRST_ERROR = 400
_REFUSALS_PER_S = 10.0


@dataclass(frozen=True, slots=True)
class LogRules:
    """What an observation log keeps. Applied before anything reaches its queue.

    A unit (`unit_key`, or the request itself where none was sent) is kept whole or not at all,
    except that errors and deferred requests are always kept, and of many refusals some; see
    `ingot.observe.thinning`. `Observation.inclusion` says with which probability a row was kept, so
    that counts can be corrected; see `ingot.observe.estimate`.

    Attributes:
        sample: Fraction of units that is kept, in (0, 1].
        redact: Field -> `drop` (its default is stored), `hash` (a keyed digest is stored: equal
            values stay equal, and nobody without the key can try values) or `keep`.
        salt: Draws the units; another salt draws others.
        key_file: Holds the key of `hash`, made at first use for its owner only; `log.key` beside
            the log if not given.
        max_age_s: Seconds after which rows are deleted; None keeps them.
        max_bytes: Size of the file beyond which the oldest rows go; None lets it grow.
        refusals_per_s: Rows a second, about, for refused requests of each status and arm; infinity
            keeps every one.
    """

    sample: float = 1.0
    redact: Mapping[str, Redaction] = field(default_factory=dict)
    salt: str = "ingot"
    key_file: Path | None = None
    max_age_s: float | None = None
    max_bytes: int | None = None
    refusals_per_s: float = _REFUSALS_PER_S

    def __post_init__(self) -> None:
        """Refuse rules that cannot be followed.

        Raises:
            ServeError: A number is out of range, or a field is unknown or cannot be redacted so.
        """
        if not 0 < self.sample <= 1:
            raise ServeError(
                f"sample must be above 0 and at most 1; got {self.sample}. Use 0.1 for a tenth of "
                "all units."
            )
        if not self.refusals_per_s > 0:
            raise ServeError(
                f"Refusals must be kept at more than 0 a second; got {self.refusals_per_s}. Use "
                "inf to keep every one."
            )
        for name, kind in self.redact.items():
            _check_redaction(name, kind)
        if self.max_age_s is not None and not 0 < self.max_age_s < math.inf:
            raise ServeError(f"The age of rows must be above 0; got {self.max_age_s} s. Raise it.")
        if self.max_bytes is not None and self.max_bytes < _LEAST_BYTES:
            raise ServeError(
                f"The size of a log must be at least {_LEAST_BYTES:,} bytes; got {self.max_bytes}. "
                "Raise it, or sample fewer units."
            )

    @classmethod
    def read(cls, path: Path) -> "LogRules":
        """Read rules from TOML.

        It may hold `sample`, `salt`, `key_file`, `max_age_days`, `max_mb`, `refusals_per_s` and
        `[redact]`.

        Raises:
            ServeError: The file cannot be read, or a rule is unknown or cannot be followed.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ServeError(
                f"Rules of the log must be a TOML file; {str(path)!r} gives: {error}. Correct it."
            ) from error
        for name, value in table.items():
            _check_entry(name, value)
        days, mb, key = table.get("max_age_days"), table.get("max_mb"), table.get("key_file")
        return cls(
            sample=float(table.get("sample", 1.0)),
            redact=table.get("redact", {}),
            salt=table.get("salt", "ingot"),
            key_file=None if key is None else path.parent / key,
            max_age_s=None if days is None else days * _DAY_S,
            max_bytes=None if mb is None else int(mb * _MIB),
            refusals_per_s=float(table.get("refusals_per_s", _REFUSALS_PER_S)),
        )

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form, which says nothing of the key."""
        return {
            "sample": self.sample,
            "salt": self.salt,
            "redact": {name: kind for name, kind in self.redact.items() if kind != "keep"},
            "max_age_s": self.max_age_s,
            "max_bytes": self.max_bytes,
            "refusals_per_s": self.refusals_per_s if self.refusals_per_s < math.inf else None,
        }

    @property
    def digest(self) -> str:
        """Equal rules have equal digests, whatever their keys."""
        return digest_json(self.to_json())

    def sieve(self, log: Path) -> "Sieve | None":
        """Return what applies the rules to the observations of a log; None if they keep all.

        Args:
            log: The log's file.

        Raises:
            ServeError: The key file holds no key.
        """
        redact = {name: kind for name, kind in self.redact.items() if kind != "keep"}
        if self.sample == 1 and not redact:
            return None
        key = b""
        if "hash" in redact.values():
            key = _read_key(self.key_file or log.with_name("log.key"))
        return Sieve(self.sample, self.salt, redact, key)


class Sieve:
    """Rules at work.

    Args:
        sample: Fraction of units that is kept.
        salt: Draws them.
        redact: Field -> `drop` or `hash`.
        key: Of the digests.
    """

    def __init__(
        self, sample: float, salt: str, redact: Mapping[str, Redaction], key: bytes
    ) -> None:
        self._sample, self._salt, self._key = sample, salt.encode() + b"\0", key
        self._most = sample * 2.0**64
        self._drop = {n: _DEFAULTS[n] for n, kind in redact.items() if kind == "drop"}
        self._hash = {n: n.encode()[:_PERSON_BYTES] for n, kind in redact.items() if kind == "hash"}

    def pass_on(self, observation: Observation) -> Observation | None:
        """Return what is stored of an observation; None if it is not kept."""
        changes: dict[str, Any] = {}  # values of any field
        always = observation.status >= FIRST_ERROR or observation.deferred
        if self._sample < 1 and not always:
            if not self._is_drawn(observation.unit_key or observation.request_id):
                return None
            changes["inclusion"] = self._sample
        if self._drop or self._hash:
            changes |= self._drop
            changes |= {name: self._digest(observation, name) for name in self._hash}
        return replace(observation, **changes) if changes else observation

    def _is_drawn(self, unit: str) -> bool:
        drawn = hashlib.blake2b(self._salt + unit.encode("utf-8", "replace"), digest_size=8)
        return int.from_bytes(drawn.digest(), "big") < self._most

    def _digest(self, observation: Observation, name: str) -> str | None:
        value: str | None = getattr(observation, name)
        if not value:
            return value
        # the field is part of the digest, so that columns cannot be joined with each other
        found = hashlib.blake2b(
            value.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES, key=self._key,
            person=self._hash[name],
        )  # fmt: skip
        return "keyed:" + found.hexdigest()


def _read_key(path: Path) -> bytes:
    text = read_secret(path, lambda: os.urandom(_KEY_BYTES).hex().encode()).decode("ascii", "?")
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ServeError(
            f"A key file must hold {2 * _KEY_BYTES} hex digits; {path.name!r} does not. Restore "
            "it, or remove it to begin with a new key: values hashed before then differ."
        )
    return key


def _check_redaction(name: str, kind: str) -> None:
    kinds = get_args(Redaction)
    if kind not in kinds:
        raise ServeError(
            f"A field must be kept, dropped or hashed; got {name} = {kind!r}. "
            f"{suggest(str(kind), kinds)}"
        )
    if name not in _DEFAULTS:
        raise ServeError(
            f"A rule must be about a field of Observation; got {name!r}. "
            f"{suggest(name, _DROPPABLE)}"
        )
    if kind != "keep" and name not in _DROPPABLE:
        raise ServeError(
            f"{name} must be kept: studies of the log cannot do without it. Redact only: "
            f"{', '.join(_DROPPABLE)}."
        )
    if kind == "hash" and name not in _HASHABLE:
        raise ServeError(f"{name} must be a text to be hashed; it is a number. Drop or keep it.")


_ENTRIES: dict[str, tuple[type, ...]] = {
    "sample": (int, float), "salt": (str,), "key_file": (str,), "max_age_days": (int, float),
    "max_mb": (int, float), "refusals_per_s": (int, float), "redact": (dict,),
}  # fmt: skip


def _check_entry(name: str, value: object) -> None:
    if name not in _ENTRIES:
        raise ServeError(f"{name!r} is no rule of the log. {suggest(name, _ENTRIES)}")
    if not isinstance(value, _ENTRIES[name]) or isinstance(value, bool):
        words = " or ".join(kind.__name__ for kind in _ENTRIES[name])
        raise ServeError(f"{name} must be {words}; got {value!r}. Correct the rules of the log.")
