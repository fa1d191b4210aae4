"""What can go wrong. Every message says what must hold, what we got, and what to do.

NativeError
├── PackError        tensors or a spec that cannot be packed
├── PackedFileError  a file that is not a packed transformer, or is damaged
├── InputError       sequences that an encoder or a decoder cannot run
├── CacheFull        no pages left for the tokens of a step
└── LibraryError     the compiled library is missing, too old, or refused
"""


class NativeError(Exception):
    """Base of everything this package raises."""


class PackError(NativeError, ValueError):
    """Tensors or a spec that cannot be packed."""


class PackedFileError(NativeError, ValueError):
    """A file that is not a packed transformer, or is damaged."""


class InputError(NativeError, ValueError):
    """Sequences that an encoder or a decoder cannot run."""


class CacheFull(NativeError, RuntimeError):
    """No pages are left for the tokens of a step; nothing has changed."""


class LibraryError(NativeError, RuntimeError):
    """The compiled library is missing, too old, or refused what it was asked."""
