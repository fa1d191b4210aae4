"""Why a graph is not one of the transformers that can be taken apart."""

from ingot.core.errors import ModelError


class NotRecognized(ModelError):  # an answer more than an error: callers fall back
    """The graph is not a transformer of a known kind; the message names the first misfit.

    Attributes:
        reason: What does not fit, without the advice.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            "A graph must be a transformer that the native engine knows, built of nothing else; "
            f"{reason}. Serve it with ONNX Runtime or OpenVINO."
        )
