"""What callers may say about a request beside its body: who it is for, and where in a sequence."""

import re

from ingot.serve.problems import RequestError

KEY = re.compile(r"[\x21-\x7e]{1,128}")
_STEP_DIGITS = 16


def bad_key(header: str, value: str) -> RequestError:
    """Return the refusal of a key that could not go into a header or a log line."""
    return RequestError(
        f"Header {header} must be 1 to 128 visible ASCII characters; "
        f"got {len(value)}. Shorten or encode the key."
    )


def read_step(text: str) -> int:
    """Return the position in an episode.

    Raises:
        RequestError: It is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < _STEP_DIGITS):
        raise RequestError(
            f"Header ingot-step must be a whole number from 0 up; got {text[:32]!r}. "
            "Send the position in the episode."
        )
    return int(text)
