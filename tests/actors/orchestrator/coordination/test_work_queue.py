"""Prompts that wait for actors, and samples that wait to be collected."""

import pytest

from actors.orchestrator.coordination.work_queue import GenerateRequest, WorkQueue
from actors.types import NO_EPOCH, Prompt, PromptTurn, RolloutId, Sample, Sampling
from cluster.errors import EngineError

SAMPLING = Sampling(count=1, temperature=1.0, max_tokens=4)


def answer(request: GenerateRequest) -> list[list[Sample]]:
    return [
        [Sample(RolloutId(prompt.epoch, prompt.id, 0), [5], [-1.0], [0], "length", "x")] for prompt in request.prompts
    ]


def finish(work: WorkQueue, request: GenerateRequest) -> None:
    for prompt, group in zip(request.prompts, answer(request), strict=True):
        work.finish(prompt, SAMPLING.count, group)


def taken(work: WorkQueue) -> list[GenerateRequest]:
    requests = []
    while work.first():
        requests.append(work.take())
    return requests


def listed(count: int) -> list[Prompt]:
    return [Prompt(str(i), [1]) for i in range(count)]


def test_requests_cover_the_prompts_in_order_and_groups_come_out_as_they_finish():
    work = WorkQueue()
    work.add(listed(5), SAMPLING, size=2)
    requests = taken(work)
    assert [[prompt.id for prompt in request.prompts] for request in requests] == [["0", "1"], ["2", "3"], ["4"]]
    finish(work, requests[1])
    assert work.collect([PromptTurn(NO_EPOCH, "0")]) is None
    assert work.collect_any(3) is None
    finish(work, requests[0])
    assert [group[0].id.prompt for group in work.collect_any(3) or []] == ["2", "3", "0"]
    assert work.outstanding == 1


def test_requests_of_a_dead_actor_are_requeued_first_in_exclusive_halves():
    work = WorkQueue()
    work.add(listed(6), SAMPLING, size=4)
    request = work.take()
    work.requeue(request.prompts[1:], SAMPLING, "killed")
    again = taken(work)
    assert [[prompt.id for prompt in one.prompts] for one in again] == [["1", "2"], ["3"], ["4", "5"]]
    assert [one.exclusive for one in again] == [True, True, False]


def test_a_prompt_that_kills_three_actors_while_others_are_answered_is_given_up_with_the_cause():
    work = WorkQueue()
    work.add(listed(4), SAMPLING, size=4)
    while request := work.first():
        work.take(version=7)
        if any(prompt.id == "2" for prompt in request.prompts):
            work.requeue(request.prompts, SAMPLING, "boom")
        else:
            finish(work, request)
    groups = {group[0].id.prompt: group for group in work.collect_all(4) or []}
    assert [name for name, group in groups.items() if group[0].given_up] == ["2"]
    given_up = groups["2"]
    assert [(sample.id.prompt, sample.given_up, sample.weight_versions) for sample in given_up] == [("2", True, [7])]
    assert given_up[0].failure == "3 rollout actors died over prompt 2: boom"
    assert (work.outstanding, work.open_samples, work.begun) == (0, 0, {})


def test_a_prompt_is_given_up_after_more_deaths_while_no_other_prompt_is_answered():
    work = WorkQueue()
    work.add(listed(1), SAMPLING, size=1)
    patience = []
    while work.first():
        request = work.take()
        patience.append(request.patience)
        work.requeue(request.prompts, SAMPLING, "no progress", stalled=True)
    assert patience == [1, 2, 4, 4, 4, 4]
    assert [group[0].failure for group in work.collect_all(1) or []] == [
        "6 rollout actors died over prompt 0: no progress"
    ]


def test_after_its_second_death_a_prompt_waits_for_another_that_it_can_be_compared_with():
    work = WorkQueue()
    work.add(listed(3), SAMPLING, size=1)
    for _ in range(2):
        work.requeue(work.take().prompts, SAMPLING, "boom")
    assert [request.prompts[0].id for request in taken(work)] == ["1", "0", "2"]


def test_prompts_count_for_the_weights_that_they_were_begun_with_until_they_are_collected():
    work = WorkQueue()
    work.add(listed(5), SAMPLING, size=2)
    first, second = work.take(version=3), work.take(version=4)
    assert (work.begun, work.open_samples) == ({3: 2, 4: 2}, 5)
    work.finish(first.prompts[0], 1, answer(first)[0])
    assert (work.begun, work.open_samples) == ({3: 2, 4: 2}, 4)
    work.collect_all(1)
    work.requeue(second.prompts, SAMPLING, "killed")
    assert (work.begun, work.open_samples) == ({3: 1}, 4)


def test_samples_that_lack_or_are_of_another_prompt_are_refused():
    work = WorkQueue()
    work.add(listed(2), SAMPLING, size=2)
    request = work.take()
    with pytest.raises(EngineError, match="prompt 1 with 0 samples"):
        work.finish(request.prompts[1], 1, [])
    with pytest.raises(EngineError, match="prompt 1 with 1 samples where 1 of its own"):
        work.finish(request.prompts[1], 1, answer(request)[0])
    assert work.outstanding == 2


def test_an_id_in_work_is_refused():
    work = WorkQueue()
    work.add(listed(1), SAMPLING, size=1)
    with pytest.raises(ValueError, match="prompt 0 is in work"):
        work.add(listed(1), SAMPLING, size=1)
