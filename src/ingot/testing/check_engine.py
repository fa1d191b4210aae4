"""The contract that every engine keeps, as one function."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ingot.core.errors import EngineError
from ingot.data.data import Array
from ingot.models.model import Model, TensorSpec
from ingot.runtime.engine import Engine, EngineConfig, Session
from ingot.runtime.machine import usable_cores

Feeds = Mapping[str, Array]
_THREADS, _CALLS = 4, 8
_TOLERANCE = 1e-3  # of the largest answer: a batch of another size may take another kernel


def check_engine(
    engine: Engine, model: Model, feeds: Feeds, *, config: EngineConfig | None = None
) -> None:
    """Check that an engine keeps the contract, on a small model and inputs of its author's choice.

    What is checked: it is available; it refuses impossible thread counts before it loads anything;
    outputs have the names, dtypes and ranks of the signature; a batch of 1 and of 3 agree where the
    batch is dynamic; the same inputs give the same bits, also from four threads at once, and later
    calls leave earlier answers alone; inputs that do not fit are refused in words; it says what it
    executes; a closed session refuses to run and may be closed again.

    Args:
        engine: The engine to check.
        model: A model it can run.
        feeds: Inputs that fit `model`, at least 3 rows where its batch is dynamic.
        config: How to run it; fp32 with one thread if not given.

    Raises:
        AssertionError: The first rule that is broken, in words.
    """
    status = engine.available()
    assert status.ok, f"the engine must be available here; it says: {status.reason}"
    assert status.version, "available() must give a version"
    config = config or EngineConfig(engine=engine.name, threads=1)
    assert config.precision in engine.precisions(model), "precisions() must list what is opened"
    _check_threads(engine, model, config)
    session = engine.open(model, config)
    try:
        assert session.config == config, "a session must carry the config it was opened with"
        _check_answers(session, model, feeds)
        _check_batches(session, model, feeds)
        _check_repeats(session, feeds)
        _check_refusals(session, model, feeds)
        assert session.executed(), "executed() must name at least one operation"
    finally:
        session.close()
    _check_second_close(session)
    _refuses("run() after close()", lambda: session.run(feeds))


def _check_threads(engine: Engine, model: Model, config: EngineConfig) -> None:
    nowhere = replace(model, path=model.path / "nothing-here")
    for threads in (-1, len(usable_cores()) + 1):
        bad = replace(config, threads=threads)
        words = _refuses(f"threads={threads}", lambda bad=bad: engine.open(nowhere, bad))  # type: ignore[misc] # the default binds the loop variable
        early = "thread" in words and str(threads) in words
        assert early, f"threads={threads} must be refused before the model is read; got {words!r}"


def _check_answers(session: Session, model: Model, feeds: Feeds) -> None:
    found = session.run(feeds)
    specs = {spec.name: spec for spec in model.signature.outputs}
    assert list(found) == list(specs), f"outputs must be {list(specs)} in order; got {list(found)}"
    for name, spec in specs.items():
        value = found[name]
        assert isinstance(value, np.ndarray), f"output {name!r} must be a numpy array"
        assert value.dtype == spec.dtype, f"output {name!r} must be {spec.dtype}; got {value.dtype}"
        assert _fits(spec, value), f"output {name!r} must be {spec.shape}; got {value.shape}"


def _check_batches(session: Session, model: Model, feeds: Feeds) -> None:
    if not all(s.shape and isinstance(s.shape[0], str) for s in _all_specs(model)):
        return
    three = session.run({name: array[:3] for name, array in feeds.items()})
    for row in range(3):
        one = session.run({name: array[row : row + 1] for name, array in feeds.items()})
        for name, value in one.items():
            wanted = three[name][row : row + 1]
            room = _TOLERANCE * max(1.0, float(np.abs(three[name]).max()))
            close = value.shape == wanted.shape and np.allclose(value, wanted, rtol=0, atol=room)
            assert close, f"row {row} of output {name!r} must not depend on the batch it came in"


def _check_repeats(session: Session, feeds: Feeds) -> None:
    first = session.run(feeds)
    kept = {name: value.copy() for name, value in first.items()}
    assert _same(session.run(feeds), kept), "the same inputs must give the same bits"
    flipped = {name: np.ascontiguousarray(array[::-1]) for name, array in feeds.items()}
    other = {name: value.copy() for name, value in session.run(flipped).items()}
    assert _same(first, kept), "a later call must not change an earlier answer"

    def call(i: int) -> bool:
        return _same(session.run(flipped if i % 2 else feeds), other if i % 2 else kept)

    with ThreadPoolExecutor(_THREADS) as pool:
        same = list(pool.map(call, range(_THREADS * _CALLS)))
    assert all(same), f"{_THREADS} threads at once must get the answers that one gets"


def _check_refusals(session: Session, model: Model, feeds: Feeds) -> None:
    for what, name, bad in _misfits(model, feeds):
        words = _refuses(what, lambda bad=bad: session.run(bad))  # type: ignore[misc] # the default binds the loop variable
        assert name in words, f"the error for {what} must name {name!r}; got {words!r}"
        complete = "must" in words and "got" in words and words.rstrip().endswith(".")
        assert complete, (
            f"the error for {what} must say what must hold, what it got, what to do; got {words!r}"
        )


def _check_second_close(session: Session) -> None:
    try:
        session.close()
    except Exception as error:
        raise AssertionError(
            f"a second close() must do nothing; got {type(error).__name__}: {error}"
        ) from error


def _misfits(model: Model, feeds: Feeds) -> list[tuple[str, str, Feeds]]:
    spec = model.signature.inputs[0]
    name, array = spec.name, feeds[spec.name]
    rest = {n: a for n, a in feeds.items() if n != name}
    dtype = np.float64 if array.dtype != np.float64 else np.float32
    found: list[tuple[str, str, Feeds]] = [
        ("a wrong input name", name + "_x", {name + "_x": array, **rest}),
        ("a missing input", name, rest),
        ("an input too many", "another", {**feeds, "another": array}),
        ("a wrong dtype", name, {**feeds, name: array.astype(dtype)}),
        ("a wrong byte order", name, {**feeds, name: array.astype(array.dtype.newbyteorder())}),
        ("a wrong rank", name, {**feeds, name: array[None]}),
    ]
    axis = next((i for i, size in enumerate(spec.shape) if isinstance(size, int)), None)
    if axis is not None:
        longer = np.concatenate([array, array], axis=axis)
        found.append(("a wrong fixed size", name, {**feeds, name: longer}))
    return found


def _refuses(what: str, call: Callable[[], object]) -> str:
    """Return the words of the refusal."""
    try:
        call()
    except EngineError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(
            f"{what} must raise EngineError; got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} must raise EngineError; it was accepted")


def _same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> bool:
    return all(np.array_equal(found[name], value) for name, value in wanted.items())


def _fits(spec: TensorSpec, value: Array) -> bool:
    return value.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == got
        for want, got in zip(spec.shape, value.shape, strict=True)
    )


def _all_specs(model: Model) -> tuple[TensorSpec, ...]:
    return model.signature.inputs + model.signature.outputs
