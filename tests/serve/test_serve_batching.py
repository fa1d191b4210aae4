import asyncio

import numpy as np
import pytest

from ingot.core.errors import EngineError, ServeError
from ingot.models.model import Signature, TensorSpec
from ingot.runtime.engine import EngineConfig
from ingot.runtime.joining import Joiner
from ingot.serve.batching import Batcher
from ingot.serve.endpoint import Batching
from ingot.serve.problems import RequestError

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", "n")),), (TensorSpec("y", "float32", ("batch", "n")),)
)


class Recorder:
    """A runner that doubles, keeps what it got, and waits for the gate if there is one."""

    ready = 1

    def __init__(self, gate=None, refuse=None):
        self.calls, self._gate, self._refuse = [], gate, refuse

    async def run(self, feeds):
        self.calls.append(feeds["x"].copy())
        if self._gate is not None:
            await self._gate.wait()
        if self._refuse is not None and (feeds["x"] == -1).any():
            raise self._refuse
        return {"y": feeds["x"] * 2}


def batcher(runner, *, most=4, wait_ms=1.0, slots=1):
    seen = []
    made = Batcher(
        runner,
        Joiner(SIGNATURE, EngineConfig()),
        Batching(most, wait_ms),
        slots=slots,
        record=lambda rows, reason: seen.append((rows, reason)),
    )
    return made, seen


def request(value, rows=1, width=2):
    return {"x": np.full((rows, width), value, np.float32)}


def values(answers):
    return [answer["y"][0, 0] for answer in answers]


def test_requests_that_arrive_together_are_one_call_and_get_their_own_answers():
    async def main():
        runner = Recorder()
        made, seen = batcher(runner)
        answers = await asyncio.gather(*(made.run(request(v)) for v in (1, 2, 3)))
        return runner, seen, answers

    runner, seen, answers = asyncio.run(main())

    assert [call[:, 0].tolist() for call in runner.calls] == [[1, 2, 3]]
    assert values(answers) == [2, 4, 6]
    assert seen == [(3, "waited")]


def test_a_full_group_does_not_wait():
    async def main():
        made, seen = batcher(Recorder(), wait_ms=60_000)
        answers = await asyncio.gather(*(made.run(request(v)) for v in range(4)))
        return seen, answers

    seen, answers = asyncio.run(main())

    assert seen == [(4, "full")]
    assert values(answers) == [0, 2, 4, 6]


def test_requests_of_other_shapes_are_other_calls():
    async def main():
        made, seen = batcher(Recorder(), slots=2)
        await asyncio.gather(made.run(request(1)), made.run(request(1, width=3)))
        return seen

    assert asyncio.run(main()) == [(1, "waited"), (1, "waited")]


def test_requests_that_come_while_the_engine_is_busy_share_the_next_call():
    async def main():
        gate = asyncio.Event()
        made, seen = batcher(Recorder(gate), wait_ms=0)
        first = asyncio.create_task(made.run(request(1)))
        await asyncio.sleep(0.01)
        rest = []
        for value in (2, 3):
            rest.append(asyncio.create_task(made.run(request(value))))
            await asyncio.sleep(0.01)
        gate.set()
        return seen, await asyncio.gather(first, *rest)

    seen, answers = asyncio.run(main())

    assert seen == [(1, "waited"), (2, "waited")]
    assert values(answers) == [2, 4, 6]


@pytest.mark.parametrize("error", [EngineError("bad token"), RequestError("bad", status=422)])
def test_one_bad_request_does_not_spoil_the_others(error):
    async def main():
        made, _ = batcher(Recorder(refuse=error))
        return await asyncio.gather(
            *(made.run(request(v)) for v in (1, -1, 3)), return_exceptions=True
        )

    first, bad, third = asyncio.run(main())

    assert bad is error
    assert values([first, third]) == [2, 6]


def test_a_batch_that_lost_its_worker_and_must_not_repeat_is_not_run_again():
    async def main():
        runner = Recorder(refuse=RequestError("gone", status=503))
        made, _ = batcher(runner)
        answers = await asyncio.gather(
            *(made.run(request(v)) for v in (1, -1)), return_exceptions=True
        )
        return len(runner.calls), answers

    calls, answers = asyncio.run(main())

    assert calls == 1
    assert [answer.status for answer in answers] == [503, 503]


def test_a_request_whose_caller_left_is_taken_out_of_its_group():
    async def main():
        runner = Recorder()
        made, _ = batcher(runner, wait_ms=20)
        gone = asyncio.create_task(made.run(request(1)))
        stays = asyncio.create_task(made.run(request(2)))
        await asyncio.sleep(0)
        gone.cancel()
        return runner, await stays

    runner, answer = asyncio.run(main())

    assert [call[:, 0].tolist() for call in runner.calls] == [[2]]
    assert answer["y"][0, 0] == 4


def test_a_group_that_everybody_left_runs_nothing_and_the_next_one_works():
    async def main():
        runner = Recorder()
        made, _ = batcher(runner)
        gone = asyncio.create_task(made.run(request(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0.02)
        before = len(runner.calls)
        return before, await made.run(request(5))

    before, answer = asyncio.run(main())

    assert before == 0
    assert answer["y"][0, 0] == 10


def test_a_request_larger_than_a_batch_runs_alone():
    async def main():
        made, seen = batcher(Recorder())
        answer = await made.run(request(1, rows=9))
        return seen, answer

    seen, answer = asyncio.run(main())

    assert seen == [(9, "full")]
    assert answer["y"].shape == (9, 2)


def test_a_model_whose_answers_cannot_be_parted_fails_its_rehearsal():
    class Sums(Recorder):
        async def run(self, feeds):
            return {"y": feeds["x"].sum(axis=0)[:1]}

    made, _ = batcher(Sums())

    with pytest.raises(EngineError, match="row per row"):
        asyncio.run(made.rehearse(request(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endpoint_batches_and_shows_it(cnn, images, workers):
    import threading

    import httpx

    from ingot.registry.version import Version
    from ingot.serve.client import predict
    from ingot.serve.endpoint import Endpoint
    from ingot.serve.server import serve_in_thread

    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    endpoint = Endpoint(version, cnn, port=0, workers=workers, batching=Batching(4, 10_000.0))
    answers = {}

    def ask(url, row):
        feeds = {"image": images[0][row : row + 1]}
        answers[row] = predict(url, "cnn", feeds)[0]["logits"]

    with serve_in_thread(endpoint) as running:
        alone = predict(running.url, "cnn", {"image": images[0][:9]})[0]["logits"]
        clients = [threading.Thread(target=ask, args=(running.url, row)) for row in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        text = httpx.get(running.url + "/metrics", trust_env=False).text

    for row in range(4):
        np.testing.assert_allclose(answers[row], alone[row : row + 1], rtol=1e-5, atol=1e-6)
    assert 'ingot_batches_total{model="cnn",reason="full",version="1"} 2.0' in text
    assert 'ingot_batch_rows_sum{model="cnn",version="1"} 13.0' in text


def test_a_model_with_fixed_rows_is_not_batched(endpoint):
    from dataclasses import replace

    from ingot.serve.server import serve_in_thread

    fixed = Signature((TensorSpec("x", "float32", (1, 2)),), (TensorSpec("y", "float32", (1, 2)),))
    model = replace(endpoint.model, signature=fixed)

    class Echo:
        def run(self, feeds):
            return {"y": feeds["x"]}

    with pytest.raises(ServeError, match="cannot be batched"):
        serve_in_thread(replace(endpoint, model=model, batching=Batching()), Echo())
