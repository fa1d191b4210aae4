"""Makes the first fork fail; only ever imported by a template."""

import os

_fork, _failures = os.fork, [BlockingIOError(11, "Resource temporarily unavailable")]


def _fork_later():
    if _failures:
        raise _failures.pop()
    return _fork()


os.fork = _fork_later
