"""Activations, as they are written in papers."""

from collections.abc import Callable

import numpy as np

from ingot.data.data import Array
from ingot.models.transformer._operators import erf
from ingot.models.transformer.spec import Activation


def gelu(x: Array) -> Array:
    """X times the normal distribution function of x (Hendrycks and Gimpel, arXiv:1606.08415)."""
    found: Array = 0.5 * x * (1 + erf(x / np.sqrt(2).astype(x.dtype)))
    return found


def gelu_tanh(x: Array) -> Array:
    """The approximation of GELU by tanh, from the same paper, section 2."""
    found: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return found


def silu(x: Array) -> Array:
    """X times its logistic function."""
    found: Array = x / (1 + np.exp(-x))
    return found


def relu(x: Array) -> Array:
    """The positive part."""
    found: Array = np.maximum(x, 0)
    return found


def identity(x: Array) -> Array:
    """The input itself."""
    return x


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "none": identity,
    "gelu": gelu,
    "gelu-tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
    "tanh": np.tanh,
}
