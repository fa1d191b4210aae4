"""How pixels become a tensor."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ingot.core.errors import DataError
from ingot.data.data import Array


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How pixels become a tensor: `(pixel * scale - mean) / std`, float32.

    Attributes:
        size: Height and width to resize to (bilinear), or None where all images have one size.
        mean: Subtracted per channel, in units of the scaled pixel; one number or one per channel.
        std: Divided by per channel, above 0.
        layout: `NCHW` (torch, ONNX) or `NHWC`.
        scale: Multiplied with the 0..255 pixel first.
        channels: 3 for colour, 1 for grey.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1 / 255
    channels: Literal[1, 3] = 3

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, self.channels}:
                raise DataError(
                    f"ImageSpec.{name} must have 1 or {self.channels} numbers; got {len(values)}. "
                    "Give one per channel."
                )
        if min(self.std) <= 0 or self.channels not in {1, 3} or self.layout not in {"NCHW", "NHWC"}:
            raise DataError(
                "ImageSpec must have std above 0, 1 or 3 channels and layout 'NCHW' or 'NHWC'; got "
                f"std {self.std}, channels {self.channels}, layout {self.layout!r}. Correct these."
            )


def to_tensor(pixels: Array, spec: ImageSpec) -> Array:
    """Return `pixels` `(n, height, width)` or `(n, height, width, channels)` uint8 as float32."""
    grid = pixels[..., None] if pixels.ndim == 3 else pixels
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    tensor = (grid.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2) if spec.layout == "NCHW" else tensor)
