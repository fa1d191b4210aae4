"""Weights in bf16: the upper half of a float, eight bits of significand."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EXPONENT, _SIGN = 0x7F80, 0x8000


@dataclass(frozen=True, slots=True, eq=False)
class Bf16:
    """A weight in bf16.

    Attributes:
        bits: `(rows, inputs)`, uint16: sign, eight bits of exponent, seven of fraction.
    """

    bits: NDArray[np.uint16]

    @property
    def is_finite(self) -> bool:
        """Whether no value was too large for bf16."""
        return not bool(np.any(self.bits & _EXPONENT == _EXPONENT))


def round_to_bf16(values: NDArray[np.float32]) -> Bf16:
    """Round to the nearest bf16, ties to even; subnormal values become zeros.

    Args:
        values: Finite values of any shape.

    Returns:
        Values off by at most 2^-8 of themselves; those from 3.3962e38 on are infinite.
    """
    bits = values.view(np.uint32)
    even = (bits >> 16) & 1
    near = ((bits + (even + 0x7FFF)) >> 16).astype(np.uint16)
    has_exponent = bits & (_EXPONENT << 16) != 0
    return Bf16(np.where(has_exponent, near, (bits >> 16).astype(np.uint16) & _SIGN))
