"""Natural batching: who runs with whom, in which order, and what becomes of those who left."""

import asyncio
import threading

import numpy as np
import pytest

from fimaq.deploy.serve.batching import Batcher
from fimaq.deploy.serve.statistics import Statistics


class Model:
    """Doubles what it is given; runs only when it is let, and notes the sizes of its runs."""

    def __init__(self):
        self.runs, self.gate, self.running = [], threading.Semaphore(0), threading.Event()

    def __call__(self, images):
        self.running.set()
        assert self.gate.acquire(timeout=20)
        self.runs.append(len(images))
        return images.reshape(len(images), -1)[:, :1] * 2

    def let(self, runs):
        self.gate.release(runs)


def image(value, count=1):
    return np.full((count, 3, 2, 2), value, np.float32)


def drive(scenario, join=4, instances=1):
    """Run ``scenario(batcher, model)`` on a loop and end the batcher."""
    model, statistics = Model(), Statistics()

    async def run():
        batcher = Batcher(model, join=join, instances=instances, statistics=statistics, name="test")
        try:
            return await asyncio.wait_for(scenario(batcher, model), 20)
        finally:
            batcher.close()
            model.let(100)
            await asyncio.to_thread(batcher.join)

    return asyncio.run(run()), model, statistics


async def busy(batcher, model):
    """The model works on one image; the future of its answer."""
    first = batcher.submit(image(0))
    await asyncio.to_thread(model.running.wait, 20)
    return first


def test_what_waited_while_the_model_was_busy_runs_together():
    async def scenario(batcher, model):
        answers = [await busy(batcher, model), *(batcher.submit(image(value)) for value in (1, 2, 3))]
        model.let(2)
        return [answer.logits.ravel().tolist() for answer in await asyncio.gather(*answers)]

    answers, model, _ = drive(scenario)
    assert answers == [[0.0], [2.0], [4.0], [6.0]]
    assert model.runs == [1, 3]


def test_a_lone_request_is_not_kept_waiting_for_others():
    async def scenario(batcher, model):
        model.let(1)
        return (await batcher.submit(image(5))).logits.tolist()

    answer, model, _ = drive(scenario)
    assert (answer, model.runs) == ([[10.0]], [1])


@pytest.mark.parametrize(
    ("join", "sizes", "runs"),
    [
        (4, [2, 2, 1], [1, 4, 1]),
        (4, [3, 2, 2], [1, 3, 4]),
        (1, [1, 1, 1], [1, 1, 1, 1]),
        (4, [9, 1], [1, 9, 1]),
        (4, [1, 9], [1, 1, 9]),
    ],
)
def test_requests_are_joined_in_order_up_to_the_limit_and_never_cut(join, sizes, runs):
    async def scenario(batcher, model):
        answers = [await busy(batcher, model)]
        answers += [batcher.submit(image(index, size)) for index, size in enumerate(sizes, start=1)]
        model.let(len(runs))
        return [answer.logits.ravel().tolist() for answer in await asyncio.gather(*answers)]

    answers, model, _ = drive(scenario, join=join)
    assert answers == [[0.0], *([2.0 * index] * size for index, size in enumerate(sizes, start=1))]
    assert model.runs == runs


def test_who_left_while_waiting_is_not_computed():
    async def scenario(batcher, model):
        first, gone, last = await busy(batcher, model), batcher.submit(image(1)), batcher.submit(image(2))
        gone.cancel()
        model.let(2)
        await asyncio.gather(first, last)
        return gone.cancelled()

    cancelled, model, statistics = drive(scenario)
    assert cancelled
    assert model.runs == [1, 1]
    assert statistics.images == 2


def test_who_left_while_running_does_no_harm_to_the_others():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        leaving, staying = batcher.submit(image(1)), batcher.submit(image(2))
        model.running.clear()
        model.let(1)
        await first
        await asyncio.to_thread(model.running.wait, 20)
        leaving.cancel()
        model.let(1)
        return (await staying).logits.tolist()

    assert drive(scenario)[0] == [[4.0]]


def test_an_error_reaches_every_request_of_its_run_and_no_other():
    async def scenario(batcher, model):
        model.let(2)
        bad = batcher.submit(np.zeros((0, 3, 2, 2), np.float32))  # reshape of nothing to -1 columns fails
        with pytest.raises(ValueError, match="cannot reshape"):
            await bad
        return (await batcher.submit(image(3))).logits.tolist()

    assert drive(scenario)[0] == [[6.0]]


def test_closing_finishes_what_is_queued():
    async def scenario(batcher, model):
        answers = [await busy(batcher, model), batcher.submit(image(1)), batcher.submit(image(2))]
        batcher.close()
        model.let(5)
        return [answer.logits.item() for answer in await asyncio.gather(*answers)]

    assert drive(scenario, join=1)[0] == [0.0, 2.0, 4.0]


def test_instances_run_at_the_same_time():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        model.running.clear()
        second = batcher.submit(image(1))
        assert await asyncio.to_thread(model.running.wait, 20)  # while the first one still runs
        model.let(2)
        await asyncio.gather(first, second)

    drive(scenario, join=1, instances=2)


def test_waiting_and_computing_are_counted():
    async def scenario(batcher, model):
        answers = [await busy(batcher, model), batcher.submit(image(1)), batcher.submit(image(2))]
        model.let(2)
        return await asyncio.gather(*answers)

    answers, _, statistics = drive(scenario)
    found = statistics.to_json()
    assert (found["inference_count"], found["execution_count"]) == (3, 2)
    assert [batch["batch_size"] for batch in found["batch_stats"]] == [1, 2]
    assert found["inference_stats"]["queue"] == {"count": 3, "ns": sum(answer.queue_ns for answer in answers)}
    assert answers[1].queue_ns > answers[2].queue_ns > 0
