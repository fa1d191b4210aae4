"""One layer learns, alone, to answer with few integers as it did with floats.

For inputs x with covariance C, a layer whose weights are W^ instead of W errs, once its bias has
taken up the mean, by tr((W - W^) C (W - W^)^T). What every generated input says is in C, so that
each step of training sees all of them for the price of one matrix product.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.compress.quantize.groups import SHRINKS
from ingot.compress.quantize.rounding import round_rows
from ingot.core.errors import RecipeError
from ingot.data.data import Array

if TYPE_CHECKING:
    import torch

Limits = tuple[int, int]
DAMPING = 1e-6  # of the mean power: directions that were never drawn still count a little
SCALE_RATE = 0.1  # of the rate of the weights: a scale moves a whole row
WEAKEST, STRONGEST = 0.5, 2.0  # how much variance correction may change a scale


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A layer on its grid; `g` groups of `o` outputs and `i` inputs.

    Attributes:
        integers: `(g, o, i)`.
        scale: `(g, o, 1)`, positive.
        rounded: Error of rounding to the nearest, over the variance of the output.
        trained: Error of what is returned, before its variance is corrected.
    """

    integers: Array
    scale: Array
    rounded: float
    trained: float


def check_bits(bits: int) -> None:
    """Check the width of weights.

    Raises:
        RecipeError: Outside 4 to 8.
    """
    if bits not in range(4, 9) or bits is True:
        raise RecipeError(
            f"bits must be 4 to 8; got {bits!r}. Fewer need training on data: see Distill."
        )


def covariance(hessian: Array, mean: Array) -> Array:
    """Return Cov[x] `(g, i, i)` from E[x x^T] and E[x], with a little on its diagonal."""
    found = hessian - mean[:, :, None] * mean[:, None, :]
    power = np.maximum(np.einsum("gii->g", hessian) / hessian.shape[1], 1e-12)
    result: Array = found + DAMPING * power[:, None, None] * np.eye(hessian.shape[1])
    return result


def row_errors(weight: Array, restored: Array, cov: Array) -> Array:
    """Return diag(D C D^T), D = W - W^: the squared error of each output, `(g, o)`."""
    gap = weight.astype(np.float64) - restored
    found: Array = np.einsum("goi,goi->go", gap @ cov, gap)
    return found


def first_scales(weight: Array, factor: Array, cov: Array, limits: Limits, kind: str) -> Array:
    """Return the scales that training starts from, `(g, o, 1)`.

    They reach to the largest weight, or to that share of it, 0.6 to 1, with the least error.

    Args:
        weight: `(g, o, i)`, batch norm folded in.
        factor: What the batch norm multiplied each row by, `(g, o)`; ones without a batch norm.
        cov: Covariance of the inputs, `(g, i, i)`; its diagonal weighs the error.
        limits: Smallest and largest integer.
        kind: `row`: each row its own scale; `tensor`: one for the weights as they were before the
            batch norm.
    """
    w = weight.astype(np.float64)
    size = np.where(factor == 0, 1.0, np.abs(factor))[..., None]
    peak = np.abs(w).max(axis=2, keepdims=True)
    if kind == "tensor":
        peak = (peak / size).max() * size
    full = np.where(peak > 0, peak, limits[1]) / limits[1]
    matter = np.einsum("gii->gi", cov)[:, None, :]
    best, least = full, np.full(full.shape, np.inf)
    for share in SHRINKS:
        gap = w - np.clip(np.rint(w / (share * full)), *limits) * share * full
        error = (gap**2 * matter).sum(axis=2, keepdims=True)
        error = np.broadcast_to(error.sum(), error.shape) if kind == "tensor" else error
        best, least = np.where(error < least, share * full, best), np.minimum(error, least)
    return best


def fit_rows(
    weight: Array, scale: Array, cov: Array, *, limits: Limits, steps: int, rate: float
) -> Fit:
    """Train integers and scales of one layer.

    Starts, row by row, at the better of nearest and GPTQ rounding. Adam then moves float weights
    and the logarithms of scales; gradients pass straight through the rounding (LSQ). Of every row
    the best integers ever seen are kept. At the end each scale is corrected so that its output
    varies as much as the original's: least squares alone shrinks, layer after layer.

    Args:
        weight: `(g, o, i)`.
        scale: Where to start, `(g, o, 1)`, positive.
        cov: Covariance of the inputs, `(g, i, i)`.
        limits: Smallest and largest integer.
        steps: Steps of Adam; 0 only rounds to the nearest.
        rate: Learning rate of weights, in grid steps; falls linearly to 0.

    References:
        Esser et al., Learned Step Size Quantization, 2020. arXiv:1902.08153
    """
    nearest = np.clip(np.rint(weight / scale), *limits)
    power = max(float(row_errors(weight, np.zeros_like(weight), cov).sum()), 1e-30)
    rounded = row_errors(weight, nearest * scale, cov)
    if not steps:
        share = float(rounded.sum()) / power
        return Fit(nearest, scale, share, share)
    gptq = [round_rows(w, s, c, limits, "gptq") for w, s, c in zip(weight, scale, cov, strict=True)]
    other = row_errors(weight, np.stack(gptq) * scale, cov)
    start = np.where((rounded <= other)[..., None], nearest, np.stack(gptq))
    q, s = _train(weight, scale, cov, start, limits=limits, steps=steps, rate=rate)
    trained = row_errors(weight, q * s, cov)
    return Fit(
        q,
        s * _variance_correction(weight, q * s, cov),
        float(rounded.sum()) / power,
        float(trained.sum()) / power,
    )


def _variance_correction(weight: Array, restored: Array, cov: Array) -> Array:
    """Return std(W x) / std(W^ x) of each output, `(g, o, 1)`."""
    zeros = np.zeros_like(weight)
    wanted, got = row_errors(weight, zeros, cov), row_errors(restored, zeros, cov)
    usable = (wanted > 0) & (got > 0)
    ratio = np.sqrt(np.where(usable, wanted, 1.0) / np.where(usable, got, 1.0))
    result: Array = np.clip(ratio, WEAKEST, STRONGEST)[..., None]
    return result


def _train(
    weight: Array,
    scale: Array,
    cov: Array,
    start: Array,
    *,
    limits: Limits,
    steps: int,
    rate: float,
) -> tuple[Array, Array]:
    """Return the best integers and scales of each row.

    The gradient of the error is written out: 2 (W^ - W) C, which the error itself needs too.
    """
    import torch

    w, c, s0, u = (
        torch.tensor(x, dtype=torch.float64).float() for x in (weight, cov, scale, start)
    )
    shift = torch.zeros_like(s0)
    size = s0.square() * c.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-30
    optimizer = torch.optim.Adam([{"params": [u]}, {"params": [shift]}])
    best = torch.full(w.shape[:2], torch.inf)
    found, grid = u.clone(), s0.clone()
    for step in range(steps + 1):
        s, q = s0 * shift.exp(), u.round().clamp(*limits)
        slope = (q * s - w) @ c
        error = (slope * (q * s - w)).sum(dim=2)
        better = error < best
        best[better], found[better], grid[better] = error[better], q[better], s[better]
        inside = (u >= limits[0] - 0.5) & (u <= limits[1] + 0.5)
        u.grad = slope * s * inside / size
        shift.grad = (slope * q * s).sum(dim=2, keepdim=True) / size
        _step(optimizer, rate * (1 - step / (steps + 1)))
    return found.double().numpy(), grid.double().numpy()


def _step(optimizer: "torch.optim.Adam", rate: float) -> None:
    for group, share in zip(optimizer.param_groups, (1.0, SCALE_RATE), strict=True):
        group["lr"] = rate * share
    optimizer.step()
