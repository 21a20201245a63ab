"""Prompts that wait for actors, and samples that wait to be collected."""

import pytest

from actors.orchestrator.work_queue import GenerateRequest, WorkQueue
from actors.types import NO_EPOCH, Prompt, PromptTurn, RolloutId, Sample, Sampling
from cluster.errors import EngineError

SAMPLING = Sampling(count=1, temperature=1.0, max_tokens=4)


def answer(request: GenerateRequest) -> list[list[Sample]]:
    return [
        [Sample(RolloutId(prompt.epoch, prompt.id, 0), [5], [-1.0], [0], "length", "x")] for prompt in request.prompts
    ]


def listed(count: int) -> list[Prompt]:
    return [Prompt(str(i), [1]) for i in range(count)]


def test_requests_cover_the_prompts_in_order_and_groups_come_out_as_they_finish():
    work = WorkQueue()
    work.add(listed(5), SAMPLING, size=2)
    requests = list(iter(work.take, None))
    assert [[prompt.id for prompt in request.prompts] for request in requests] == [["0", "1"], ["2", "3"], ["4"]]
    work.finish(requests[1], answer(requests[1]))
    assert work.collect([PromptTurn(NO_EPOCH, "0")]) is None
    assert work.collect_any(3) is None
    work.finish(requests[0], answer(requests[0]))
    assert [group[0].id.prompt for group in work.collect_any(3) or []] == ["2", "3", "0"]
    assert work.outstanding == 1


def test_the_request_of_a_dead_actor_goes_first_and_in_halves_that_are_exclusive():
    work = WorkQueue()
    work.add(listed(6), SAMPLING, size=4)
    request = work.take()
    assert request is not None
    work.requeue(request, "killed")
    assert work.take(concurrent=True) is None
    again = [[prompt.id for prompt in request.prompts] for request in iter(work.take, None)]
    assert again == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_a_prompt_that_kills_three_actors_is_named_with_the_cause():
    work = WorkQueue()
    work.add(listed(1), SAMPLING, size=1)
    for _ in range(2):
        work.requeue(work.take() or pytest.fail("the prompt is gone"), "boom")
    with pytest.raises(EngineError, match=r"3 rollout actors died over prompt 0: boom"):
        work.requeue(work.take() or pytest.fail("the prompt is gone"), "boom")


def test_half_an_answer_is_refused_whole():
    work = WorkQueue()
    work.add(listed(2), SAMPLING, size=2)
    request = work.take()
    assert request is not None
    with pytest.raises(EngineError, match="1 of 2 prompts"):
        work.finish(request, answer(request)[:1])
    with pytest.raises(EngineError, match="prompt 1 with 0 samples"):
        work.finish(request, [*answer(request)[:1], []])
    assert work.outstanding == 2


def test_an_id_in_work_is_refused():
    work = WorkQueue()
    work.add(listed(1), SAMPLING, size=1)
    with pytest.raises(ValueError, match="prompt 0 is in work"):
        work.add(listed(1), SAMPLING, size=1)
