"""Suggestions for names that are unknown."""

import difflib
from collections.abc import Iterable


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, or the valid set.

    Examples:
        >>> suggest("acuracy", ["accuracy", "f1"])
        "Did you mean 'accuracy'? Valid: accuracy, f1."
        >>> suggest("zzz", ["accuracy", "f1"])
        'Valid: accuracy, f1.'
    """
    known = sorted(valid)
    near = difflib.get_close_matches(name, known, n=1)
    listing = f"Valid: {', '.join(known)}." if known else "Nothing is available."
    return f"Did you mean {near[0]!r}? {listing}" if near else listing
