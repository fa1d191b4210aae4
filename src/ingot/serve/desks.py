"""Opens the traffic of every name that a server has a plan for."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from ingot.core.errors import ServeError
from ingot.models.model import Signature
from ingot.serve.endpoint import Endpoint
from ingot.serve.state import ObservationSink, Served
from ingot.serve.traffic.desk import TrafficDesk
from ingot.serve.traffic.plan import Traffic
from ingot.serve.traffic.shadow import Copies, Watched

Shape = tuple[tuple[str, str, tuple[object, ...]], ...]


def check_traffic(endpoints: Sequence[Endpoint]) -> None:
    """Refuse plans that cannot be kept with what is served, before anything is opened.

    Raises:
        ServeError: One cannot.
    """
    names = [one.version.name for one in endpoints if one.traffic is not None]
    for one in endpoints:
        plan, name = one.traffic, one.version.name
        if plan is None:
            continue
        if names.count(name) > 1:
            raise ServeError(
                f"The traffic of {name!r} must be planned once; got it twice. Leave one out."
            )
        beside = [other for other in endpoints if other.version.name == name]
        _check_alike(beside)
        _check_shadow(plan, beside)


def open_desks(
    served: Sequence[Served], log: ObservationSink | None, stack: ExitStack
) -> dict[str, TrafficDesk]:
    """Return the traffic by name of the model; none where no endpoint has a plan.

    Args:
        served: Everything that the server serves, its plans checked.
        log: Where observations go.
        stack: Closes it at the end.

    Raises:
        ServeError: A plan names a version that is not served.
    """
    desks: dict[str, TrafficDesk] = {}
    for one in served:
        plan, name = one.endpoint.traffic, one.endpoint.version.name
        if plan is None:
            continue
        beside = [other for other in served if other.endpoint.version.name == name]
        copies = _open_copies(plan, beside, log)
        versions = [other.endpoint.version for other in (one, *(b for b in beside if b is not one))]
        desks[name] = TrafficDesk(plan, versions, copies=copies)
        stack.callback(desks[name].close)
    return desks


def start_desks(desks: Mapping[str, TrafficDesk], served: Sequence[Served]) -> None:
    """Look after every canary from now on."""

    def is_draining() -> bool:
        return any(one.state.is_draining for one in served)

    for desk in desks.values():
        desk.start(is_draining)


def _open_copies(
    plan: Traffic, served: Sequence[Served], log: ObservationSink | None
) -> Copies | None:
    if plan.shadow is None:
        return None
    found = next(one for one in served if one.endpoint.version.number == plan.shadow.version)
    endpoint = found.endpoint
    watched = Watched(
        endpoint.version, endpoint.model.signature, found, endpoint.timeout_s, endpoint.finite_only
    )
    return Copies(plan.shadow, watched, None if log is None else log.record)


def _check_shadow(plan: Traffic, endpoints: Sequence[Endpoint]) -> None:
    if plan.shadow is None:
        return
    found = [one for one in endpoints if one.version.number == plan.shadow.version]
    if not found:
        raise ServeError(
            f"The shadow must be served; version {plan.shadow.version} of "
            f"{endpoints[0].version.name!r} is not. Serve it beside the others."
        )
    is_dealt = plan.canary is not None and plan.canary.version == plan.shadow.version
    is_dealt |= plan.split is not None and plan.split.weight(plan.shadow.version) > 0
    if is_dealt and found[0].batching is not None and found[0].workers:
        raise ServeError(
            f"Copies must not join a call with requests that somebody waits for; "
            f"{found[0].version.label} is batched, dealt requests and a shadow. Serve it without "
            "batching, or without workers."
        )


def _check_alike(endpoints: Sequence[Endpoint]) -> None:
    first, *others = endpoints
    for other in others:
        if _shape(other.model.signature) != _shape(first.model.signature):
            raise ServeError(
                "Versions that share requests must take and give the same tensors; "
                f"{other.version.label} and {first.version.label} do not. Serve them apart."
            )


def _shape(signature: Signature) -> tuple[Shape, Shape]:
    """Return inputs and outputs by name; what an open axis is called does not matter."""
    inputs, outputs = (
        tuple(sorted(
            (spec.name, spec.dtype, tuple(n if isinstance(n, int) else -1 for n in spec.shape))
            for spec in specs
        ))
        for specs in (signature.inputs, signature.outputs)
    )  # fmt: skip
    return inputs, outputs
