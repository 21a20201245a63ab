"""Annotators that are functions: the ranks that they may return, and how often they may fail."""

import asyncio
import gc
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.model.chat import Chat
from cluster.errors import StageError, UserError
from cluster.feedback import Feedback
from cluster.recipe.base import Call
from pipelines import collect
from pipelines.collect import rank_synthetically, ranking_rows
from pipelines.collect_answers import plan_round
from pipelines.data.call_failures import ATTEMPTS, LATE_IN_A_ROW, CallFailedError
from pipelines.data.preferences.annotators import JudgedAnswer, SyntheticAnnotator
from tests.pipelines.collect.answers import (
    BY_LENGTH,
    DEMO_ANNOTATOR,
    add_answers,
    add_plan,
    by_length,
    collect_recipe,
    no_failures,
)


def test_the_check_refuses_prompts_that_the_annotator_cannot_judge(tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Write a poem."}\n{"prompt": "Write a song."}\n')
    plan = plan_round(collect_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    details = {name: row.details for name, row in plan.rows.items()}
    with pytest.raises(UserError, match=r"judges only the demo's prompts.*collect\.annotator=people"):
        DEMO_ANNOTATOR.check(details)
    DEMO_ANNOTATOR.check({"x": {"kind": "harmful", "key": ""}})


def no_ranks(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[float]:
    return [0.5] * len(answers)


def too_few(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    return [1]


def test_a_users_annotator_ranks_any_prompt(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Write a poem."}\n{"prompt": "Write a song."}\n')
    own = SyntheticAnnotator.of(Call(function=BY_LENGTH))
    plan = plan_round(collect_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    own.check({name: row.details for name, row in plan.rows.items()})
    database.add_prompts(list(plan.rows.values()))
    add_answers(database, chat, plan, list(plan.rows))
    rank_synthetically(own, 1, chat, database, plan, no_failures())
    rows = ranking_rows(own, chat, database, plan, no_failures(), [])
    assert [row["ranks"] for row in rows] == [[3, 3, 1, 2]] * 2
    assert [row["grades"] for row in rows] == [None, None]
    assert {row["annotator"] for row in rows} == {f"code ({BY_LENGTH})"}


@pytest.mark.parametrize(
    ("function", "message"), [("no_ranks", "an integer for each"), ("too_few", r"returned \[1\] for 2")]
)
def test_an_annotator_must_rank_every_answer(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SyntheticAnnotator.of(Call(function=f"{__name__}:{function}")).check({"x": {}})


def hangs(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    if int(prompt["id"]) >= 2:
        time.sleep(60)
    return [1] * len(answers)


def test_an_annotator_that_hangs_is_told_in_one_line_and_stopped() -> None:
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:hangs"), seconds=0.3)
    prompts = {f"p{number}": {"id": str(number)} for number in range(40)}
    with pytest.raises(UserError, match=r"the prompt 'p2': it took longer than 0.3 s \(1 of 40 prompts failed"):
        own.check(prompts)
    with pytest.raises(UserError, match=rf"^the .* 'p9': it took .* each of the last {LATE_IN_A_ROW} calls"):
        own.check(prompts, max_failed=1.0)


CALLS: Counter[str] = Counter()


def unsteady(
    prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random, often: int, every: int = 1
) -> list[np.int64]:
    """Fails the first `often` times on one of `every` prompts."""
    name = prompt["id"]
    CALLS[name] += 1
    if int(name) % every == 0 and CALLS[name] <= often:
        raise ConnectionError("the annotators' line is busy")
    return [np.int64(rank) for rank in by_length(prompt, answers, chance)]


def _unsteady(tmp_path: Path, chat: Chat, database: Feedback, **arguments: int) -> tuple[SyntheticAnnotator, Any]:
    CALLS.clear()
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}.", "id": str(n)}) + "\n" for n in range(20)))
    plan = plan_round(collect_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}]), chat, "w")
    for row in plan.rows.values():
        row.details["id"] = row.messages[0]["content"].split()[1].rstrip(".")
    add_plan(database, chat, plan, {name: ["a", "bb", "ccc"] for name in plan.rows})
    return SyntheticAnnotator.of(Call(function=f"{__name__}:unsteady", arguments=arguments)), plan


def test_an_annotator_that_fails_at_times_is_asked_again(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    annotator, plan = _unsteady(tmp_path, chat, database, often=ATTEMPTS - 1)
    annotator.check({name: row.details for name, row in plan.rows.items()})
    CALLS.clear()
    failures = no_failures(20)
    rank_synthetically(annotator, 1, chat, database, plan, failures)
    rows = ranking_rows(annotator, chat, database, plan, failures, [])
    assert [row["ranks"] for row in rows] == [[1, 2, 3]] * 20
    assert failures.messages == []


def test_prompts_on_which_an_annotator_always_fails_are_left_out_up_to_a_share(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    annotator, plan = _unsteady(tmp_path, chat, database, often=10**6, every=10)
    details = {name: row.details for name, row in plan.rows.items()}
    annotator.check(details, max_failed=0.1)
    with pytest.raises(UserError, match=r"the annotators' line is busy \(tried 3 times; 2 of 20 prompts failed"):
        annotator.check(details, max_failed=0.05)
    failures = no_failures(20, 0.1)
    rank_synthetically(annotator, 1, chat, database, plan, failures)
    assert len(ranking_rows(annotator, chat, database, plan, failures, [])) == 18
    assert len(failures.messages) == 2
    assert "it raised ConnectionError: the annotators' line is busy" in failures.messages[0]
    with pytest.raises(StageError, match=r"collect.max_failed_rankings allows 5%"):
        rank_synthetically(annotator, 1, chat, database, plan, no_failures(20, 0.05))


def test_rankings_are_stored_as_they_are_made(
    tmp_path: Path, chat: Chat, database: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "STORE_BATCH", 8)
    annotator, plan = _unsteady(tmp_path, chat, database, often=0)
    stored: list[int] = []

    def looks(*given: Any) -> Any:
        stored.append(len(database.rankings()))
        return annotator.function(*given)

    rank_synthetically(replace(annotator, function=looks, at_once=1), 1, chat, database, plan, no_failures(20))
    assert stored == [0] * 8 + [8] * 8 + [16] * 4
    assert len(database.rankings()) == 20


TOGETHER = threading.Barrier(4)


def waits(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    """Returns once it has been called for four prompts, the later of which are done sooner."""
    TOGETHER.wait(20)
    time.sleep(0.02 * (4 - int(prompt["id"]) % 4))
    return [1 + int(prompt["id"])] * len(answers)


def test_prompts_are_judged_side_by_side_and_stored_in_their_order() -> None:
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:waits"), at_once=4)
    answers = [JudgedAnswer("a", True)]
    found = own.each(lambda number: own.judge("p", {"id": str(number)}, answers, "1"), range(8))
    assert [one.ranks for one in found if not isinstance(one, CallFailedError)] == [[1 + number] for number in range(8)]


def lost(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    """Tries twice as many ways to match with each letter."""
    re.fullmatch("(a+)+", "a" * 40 + "b")
    return [1] * len(answers)


def test_a_regular_expression_that_does_not_end_is_late() -> None:
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:lost"), 0.2)
    with pytest.raises(UserError, match=r"'p': it took longer than 0.2 s"):
        own.check({"p": {}})


async def slow_client(
    prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random, seconds: float
) -> list[int]:
    """Ranks after a wait; of the prompts 3 and 7 the wait is too long, and 5 cannot be ranked."""
    number = int(prompt["id"])
    await asyncio.sleep(60 if number in (3, 7) else seconds)
    if number == 5:
        raise ConnectionError("the line is busy")
    return by_length(prompt, answers, chance)


def test_a_coroutine_function_is_awaited_for_many_prompts_at_once_each_with_its_deadline() -> None:
    name = f"{__name__}:slow_client"
    own = SyntheticAnnotator.of(Call(function=name, arguments={"seconds": 0.2}), seconds=2.0, at_once=16)
    prompts = {f"p{number}": {"id": str(number)} for number in range(32)}
    answers = [JudgedAnswer("long one", True), JudgedAnswer("short", True)]
    begin = time.monotonic()
    found = list(own.each(lambda one: own.judge(one, prompts[one], answers, "seed"), prompts))
    # One after another the waits of those that succeed alone are 5.8 s, and each late one takes 2 s more.
    assert time.monotonic() - begin < 8
    failed = {number: one for number, one in enumerate(found) if isinstance(one, CallFailedError)}
    assert sorted(failed) == [3, 5, 7]
    assert [failed[number].late for number in (3, 5, 7)] == [True, False, True]
    assert str(failed[3]).endswith("cannot judge the prompt 'p3': it took longer than 2 s")
    assert str(failed[5]).endswith("it raised ConnectionError: the line is busy")
    assert all(one.ranks == [2, 1] for one in found if not isinstance(one, CallFailedError))
    with pytest.raises(UserError, match=r"\(tried 3 times; 2 of 32 prompts failed.*allows 5%\)"):
        own.check(prompts, max_failed=0.05)
    own.check(prompts, max_failed=0.1)


async def blocks(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    """Ranks after a short wait; of the prompt 2 it keeps the event loop busy."""
    if prompt["id"] == "2":
        time.sleep(30)
    await asyncio.sleep(0.1)
    return [1] * len(answers)


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_coroutine_function_that_blocks_on_one_prompt_is_late_there_alone(at_once: int) -> None:
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:blocks"), seconds=1.0, at_once=at_once)
    prompts = {f"p{number}": {"id": str(number)} for number in range(12)}
    answers = [JudgedAnswer("a", True), JudgedAnswer("b", True)]
    found = list(own.each(lambda one: own.judge(one, prompts[one], answers, "seed"), prompts))
    assert [number for number, one in enumerate(found) if isinstance(one, CallFailedError)] == [2]
    assert "took longer than 1 s" in str(found[2])


def test_the_event_loop_ends_with_its_annotator() -> None:
    others = set(threading.enumerate())
    own = SyntheticAnnotator.of(Call(function=f"{__name__}:blocks"))
    own.judge("p1", {"id": "1"}, [JudgedAnswer("a", True), JudgedAnswer("b", True)], "seed")
    (thread,) = [one for one in threading.enumerate() if one not in others]
    del own
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
