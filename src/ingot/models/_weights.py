"""Weights from files that cannot run code: safetensors, plain arrays, restricted state dicts."""

import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.errors import ModelError
from ingot.core.extras import need

STATE_DICTS = (".pt", ".pth", ".th", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Weights do not compress: a file that grows more than this holds something else.
_MAX_GROWTH = 20
_ALWAYS_FINE = 64 * 1024 * 1024


def read_weights(path: Path) -> dict[str, Any]:
    """Return weights by name as torch tensors.

    Raises:
        ModelError: The file is missing, of another kind, broken, or would have to be unpickled.
    """
    if not path.is_file():
        raise ModelError(f"Weights must be a file; got {str(path)!r}. Check the path.")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        check_archive(path)
    if suffix == ".npz":
        return _npz(path)
    if suffix in STATE_DICTS:
        return _state_dict(path)
    raise ModelError(
        f"Weights must be .safetensors, .npz or a state dict ({', '.join(STATE_DICTS)}); got "
        f"{path.name!r}. Save them with safetensors.torch.save_file(module.state_dict(), path)."
    )


def check_archive(path: Path) -> None:
    """Refuse an archive that is broken or unpacks to far more than weights can.

    Raises:
        ModelError: It is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    limit = max(_ALWAYS_FINE, _MAX_GROWTH * path.stat().st_size)
    if total > limit:
        raise ModelError(
            f"{path.name} must not unpack to more than {limit:,} bytes; it says {total:,}. "
            "Weights do not compress that well: do not use this file."
        )


def _safetensors(path: Path) -> dict[str, Any]:
    need("torch", extra="compress", what="A torch factory")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # type: ignore[no-any-return] # untyped upstream
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _broken(path, str(error)) from error


def _npz(path: Path) -> dict[str, Any]:
    torch = need("torch", extra="compress", what="A torch factory")
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _check_array(archive, info)
        with np.load(path, allow_pickle=False) as arrays:
            # copy: torch wants writable memory
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise _broken(path, str(error)) from error


def _check_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Compare what an array says with what is there, before memory is taken for it."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{info.filename!r} holds pickled objects, which are never loaded")
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename!r} is shorter than its header says")


def _state_dict(path: Path) -> dict[str, Any]:
    torch = need("torch", extra="compress", what="A state dict")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of a file that is refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path.name} must hold plain tensors; it holds objects that only unpickling could "
            "load, and unpickling runs code from the file. Nothing was run. If you trust its "
            "maker, "
            "load it yourself and save module.state_dict() as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _broken(
            path, str(error).splitlines()[0] if str(error) else "it ends early"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(
            f"{path.name} must hold a state dict (name to tensor); got "
            f"{type(state).__name__}. Save "
            "module.state_dict(), not the module."
        )
    return state


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(f"{path.name} must be a whole, valid file of weights; {why}. Copy it again.")
