"""How far a student's answers are from its teacher's, by task."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ingot.data.data import Task

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
Loss = Callable[["Tensors", "Tensors"], Any]
TEMPERATURE = 2.0


def make_loss(task: Task, outputs: Sequence[str]) -> Loss:
    """Return the loss between answers and truth, both by output name.

    The first output is compared as the task reads it: class probabilities by Kullback-Leibler
    divergence (Hinton et al., 2015), embeddings by direction and by the similarities inside the
    batch (Tung and Mori, 2019, arXiv:1907.09682), all else by squared error over its variance.
    Further outputs always by the latter.
    """
    first = {Task.CLASSIFICATION: _classes, Task.SIMILARITY: _embeddings}.get(task, _relative)

    def loss(answers: "Tensors", truth: "Tensors") -> Any:
        total = first(answers[outputs[0]].float(), truth[outputs[0]].float())
        for name in outputs[1:]:
            if truth[name].is_floating_point():
                total = total + _relative(answers[name].float(), truth[name].float())
        return total

    return loss


def _relative(answer: Any, truth: Any) -> Any:
    return (answer - truth).square().mean() / truth.var(correction=0).clamp_min(1e-12)


def _classes(answer: Any, truth: Any) -> Any:
    from torch.nn import functional

    log_p = functional.log_softmax(answer / TEMPERATURE, -1)
    log_q = functional.log_softmax(truth / TEMPERATURE, -1)
    soft = functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return soft * TEMPERATURE**2 + 0.1 * _relative(answer, truth)


def _embeddings(answer: Any, truth: Any) -> Any:
    from torch.nn import functional

    a, t = functional.normalize(answer, dim=-1), functional.normalize(truth, dim=-1)
    direction = 1 - (a * t).sum(-1).mean()
    return direction + (a @ a.T - t @ t.T).square().mean() * 10
