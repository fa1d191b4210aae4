"""Up or down: rounding weights so that the layer's *output* keeps, not each weight.

With H = E[x x^T], rounding W to W^ costs tr((W - W^) H (W - W^)^T) in the output. Rounding to the
nearest minimizes it only if H is diagonal.
"""

from typing import Literal, get_args

import numpy as np

from ingot.core.errors import RecipeError
from ingot.core.extras import need
from ingot.data.data import Array

Rounding = Literal["nearest", "gptq", "learned"]
DAMPING = 0.01  # of the mean diagonal of H: inputs that were never seen still count a little
BLOCK = 128
LEARNING_STEPS = 400
LEARNING_RATE = 0.02
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # the rectified sigmoid reaches 0 and 1


def check_rounding(rounding: str) -> None:
    """Check the name of a rule.

    Raises:
        RecipeError: It is unknown.
    """
    if rounding not in get_args(Rounding):
        raise RecipeError(
            f"rounding must be one of {', '.join(get_args(Rounding))}; got {rounding!r}. "
            "Use 'gptq': it is fast and rarely worse."
        )


def round_rows(
    weight: Array, scale: Array, hessian: Array, limits: tuple[int, int], how: Rounding
) -> Array:
    """Return integers `(outputs, inputs)` for a symmetric grid.

    Args:
        weight: `(outputs, inputs)`.
        scale: Positive, broadcastable to `weight`: one per row, or one per group of inputs
            repeated over the group.
        hessian: E[x x^T], `(inputs, inputs)`.
        limits: Smallest and largest integer.
        how: The rule.

    References:
        Frantar et al., GPTQ, 2023. arXiv:2210.17323
        Nagel et al., Up or Down? Adaptive Rounding, 2020. arXiv:2004.10568
    """
    w = weight.astype(np.float64)
    steps = np.broadcast_to(scale, w.shape).astype(np.float64)
    if how == "gptq":
        return _gptq(w, steps, hessian, limits)
    if how == "learned":
        return _learned(w, steps, hessian, limits)
    return np.clip(np.rint(w / steps), *limits)


def output_error(weight: Array, restored: Array, hessian: Array) -> float:
    """Return tr(D H D^T) / tr(W H W^T), D = W - W^: the share of the output that is lost."""
    w = weight.astype(np.float64)
    gap = w - restored
    power = float(np.einsum("ij,ij->", w @ hessian, w))
    return float(np.einsum("ij,ij->", gap @ hessian, gap)) / max(power, 1e-30)


def _gptq(w: Array, steps: Array, hessian: Array, limits: tuple[int, int]) -> Array:
    """Round column after column; what each one loses, the columns to come make up for."""
    order = np.argsort(-np.diag(hessian), kind="stable")  # what matters most goes first
    damp = DAMPING * max(float(np.mean(np.diag(hessian))), 1e-12)
    h = hessian[np.ix_(order, order)] + damp * np.eye(len(order))
    upper = _inverse_factor(h)
    left, scale = w[:, order].copy(), steps[:, order]
    found = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        lost = np.empty((len(left), end - start))
        for j in range(start, end):
            found[:, j] = np.clip(np.rint(left[:, j] / scale[:, j]), *limits)
            lost[:, j - start] = (left[:, j] - found[:, j] * scale[:, j]) / upper[j, j]
            left[:, j + 1 : end] -= np.outer(lost[:, j - start], upper[j, j + 1 : end])
        left[:, end:] -= lost @ upper[start:end, end:]
    back = np.empty_like(found)
    back[:, order] = found
    return back


def _inverse_factor(h: Array) -> Array:
    """Return the upper Cholesky factor of the inverse."""
    from scipy.linalg import cho_factor, cho_solve

    inverse = cho_solve(cho_factor(h), np.eye(len(h)))
    upper: Array = np.linalg.cholesky((inverse + inverse.T) / 2 + 1e-15 * np.eye(len(h))).T
    return upper


def _learned(w: Array, steps: Array, hessian: Array, limits: tuple[int, int]) -> Array:
    """Learn for each weight whether it goes up or down, by gradient on the output's error."""
    torch = need("torch", extra="compress", what="Learned rounding")
    scale = torch.from_numpy(steps).float()
    target = torch.from_numpy(w / steps).float()
    h = torch.from_numpy(hessian / max(float(np.mean(np.diag(hessian))), 1e-30)).float()
    floor = target.floor()
    share = ((target - floor) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    v = torch.logit(share.clamp(1e-4, 1 - 1e-4)).requires_grad_(True)
    optimizer = torch.optim.Adam([v], lr=LEARNING_RATE)
    size = float((scale**2).mean()) * target.numel()
    for step in range(LEARNING_STEPS):
        soft = (torch.sigmoid(v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)
        gap = (torch.clamp(floor + soft, *limits) - target) * scale
        loss = ((gap @ h) * gap).sum() / size
        done = step / LEARNING_STEPS
        if done > 0.2:  # then push each towards a decision, ever harder
            power = 20 - 18 * (done - 0.2) / 0.8
            loss = loss + 0.02 * (1 - (2 * soft - 1).abs() ** power).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rounded = torch.clamp(floor + (v.detach() >= 0), *limits).double().numpy()
    nearest = np.clip(np.rint(w / steps), *limits)
    return _better_rows(rounded, nearest, w, steps, hessian)


def _better_rows(a: Array, b: Array, w: Array, steps: Array, hessian: Array) -> Array:
    """Return for each output the rounding that loses less: learning may end in a worse place."""
    losses = [np.einsum("ij,ij->i", (w - q * steps) @ hessian, w - q * steps) for q in (a, b)]
    return np.where((losses[0] <= losses[1])[:, None], a, b)
