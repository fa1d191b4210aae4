"""How a language model ends a text and how it is talked to: what its Hugging Face folder says.

A `tokenizer.json` lists special tokens and does not say which of them ends a text. The files beside
it do; what they say is kept with the model as `generation.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingot.core.digest import canonical_json
from ingot.core.errors import ModelError
from ingot.models.model import GENERATION_FILE, TOKENIZER_FILE, Model

_MOST_BYTES = 1 << 20
_NAMED = ("bos_token", "eos_token")  # tokens that chat templates spell by these names


@dataclass(frozen=True, slots=True)
class Ends:
    """What is known of the texts of a language model.

    Attributes:
        tokens: Ids of the tokens that end a text.
        chat_template: How messages become a prompt, in Jinja; empty if there is none.
        named: Tokens that the template calls by name, e.g. `{"eos_token": "</s>"}`.
    """

    tokens: tuple[int, ...] = ()
    chat_template: str = ""
    named: Mapping[str, str] = field(default_factory=dict)

    def as_files(self) -> dict[str, Path | bytes]:
        """Return the file that keeps this with a model; none if nothing is known."""
        known = self.tokens or self.chat_template
        return {GENERATION_FILE: canonical_json(asdict(self))} if known else {}


def ends_of(model: Model) -> Ends:
    """Return what a stored model carries.

    Raises:
        ModelError: Its `generation.json` is not what this library writes.
    """
    path = model.generation_path
    if path is None:
        return Ends()
    try:
        found = json.loads(path.read_bytes())
        return Ends(_ids(found["tokens"]), str(found["chat_template"]), _texts(found["named"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{GENERATION_FILE} must hold tokens, chat_template and named; got {error!r}. Load the "
            "model again from where it came."
        ) from error


# Any below is JSON from a folder; whatever is odd in it counts as not said.
def read_ends(folder: Path) -> Ends:
    """Read a Hugging Face folder.

    The ids come from `generation_config.json`, else from `config.json`, else the token that
    `tokenizer_config.json` names is looked up in `tokenizer.json`: what generation itself uses
    first.

    Args:
        folder: With any of these files; a missing or unreadable one says nothing.
    """
    words = _object(folder / "tokenizer_config.json")
    named = {name: text for name in _NAMED if (text := _content(words.get(name)))}
    for name in ("generation_config.json", "config.json"):
        if tokens := _ids(_object(folder / name).get("eos_token_id")):
            break
    else:
        tokens = _looked_up(folder / TOKENIZER_FILE, named.get("eos_token", ""))
    return Ends(tokens, _template(folder, words), named)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ids(value: Any) -> tuple[int, ...]:
    rows = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(
        row for row in rows if isinstance(row, int) and not isinstance(row, bool) and row >= 0
    ))  # fmt: skip


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}


def _content(value: Any) -> str:
    """Return the text of a token that is a string, or a description of one."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _looked_up(path: Path, token: str) -> tuple[int, ...]:
    rows = _object(path).get("added_tokens")
    for row in rows if isinstance(rows, list) else ():
        if token and isinstance(row, dict) and row.get("content") == token:
            return _ids(row.get("id"))
    return ()


def _template(folder: Path, words: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    try:
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = words.get("chat_template")
    if isinstance(found, list):  # several by name
        rows = [row for row in found if isinstance(row, dict)]
        found = next((row.get("template") for row in rows if row.get("name") == "default"), "")
    return found if isinstance(found, str) else ""
