"""Reports on reward models with known flaws: they are rules over the text."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from actors.model.chat import Chat
from cluster.errors import StageError, UserError
from pipelines.evaluate.reward_probes import (
    PROBES,
    THANKS,
    require_probes_pass,
    run_probes,
    with_counterexamples,
    worsened_answer,
)
from pipelines.evaluate.reward_trust import calibration, ceiling, pair_accuracy, reward_model_report
from tests.tiny import tiny_tokenizer

PROMPT = [2, 90, 4, 3]
SUBJECTS = ("Lima", "Paris", "Oslo", "Rome", "Cairo", "Quito", "Delhi", "Tokyo", "Bern", "Doha", "Riga", "Kiev")
ROOM = 512


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer())


def rows(chat: Chat, people: int = 1, best: str = "The capital is {}.") -> list[dict[str, Any]]:
    """Returns prompts with a good, a mediocre and a bad answer, ranked in that order by everyone."""
    texts = {
        f"p{number}": [best.format(subject), f"Perhaps it is {subject}, or another one.", "?"]
        for number, subject in enumerate(SUBJECTS)
    }
    return [
        {
            "prompt_id": name,
            "kind": "capital" if int(name[1:]) % 2 else None,
            "prompt_token_ids": PROMPT,
            "answers": [[*chat.tokenizer.encode(text), chat.end_of_turn_id] for text in answers],
            "texts": answers,
            "ranks": [1, 2, 3],
            "grades": None,
            "annotator": f"person {person}",
            "split": "held_out",
        }
        for name, answers in texts.items()
        for person in range(people)
    ]


def by_text(chat: Chat, rule: Callable[[str], float]) -> Callable[[list[list[int]]], list[float]]:
    return lambda sequences: [rule(chat.tokenizer.decode(ids[len(PROMPT) : -1])) for ids in sequences]


def scored(given: list[dict[str, Any]], score: Callable[[list[list[int]]], list[float]]) -> list[list[float]]:
    return [score([PROMPT + answer for answer in row["answers"]]) for row in given]


RULES: dict[str, tuple[Callable[[str], float], set[str]]] = {
    "sound": (lambda text: text.startswith("The capital") - 0.01 * len(text), set()),
    "length": (lambda text: float(len(text)), {"longer", "thanks", "repetition"}),
    "brevity": (lambda text: -float(len(text)), {"empty"}),
    "politeness": (lambda text: float(THANKS in text), {"thanks"}),
    "caution": (lambda text: float("cannot" in text), {"refusal"}),
    "indifference": (lambda _: 0.0, set()),
}


@pytest.mark.parametrize("name", RULES)
def test_a_known_flaw_fails_its_probe_and_no_other(name: str, chat: Chat) -> None:
    rule, failing = RULES[name]
    found = run_probes(rows(chat), by_text(chat, rule), chat, ROOM)
    assert {probe for probe in PROBES if found[probe]["fails"]} - (
        {"refusal"} if name == "length" else set()
    ) == failing
    # No answer begins with yes or no, and none answers several questions.
    assert {probe: found[probe]["n"] for probe in PROBES} == {
        probe: 0 if probe in ("flipped", "common") else len(SUBJECTS) for probe in PROBES
    }


def test_a_reward_model_that_likes_denials_fails_the_probe_that_flips_them(chat: Chat) -> None:
    given = rows(chat, best="Yes. {} is a city.")
    found = run_probes(given, by_text(chat, lambda text: float(text.startswith("No"))), chat, ROOM)
    assert found["flipped"]["fails"]
    assert not run_probes(given, by_text(chat, RULES["brevity"][0]), chat, ROOM)["thanks"]["fails"]


def test_random_scores_fail_no_probe_and_probes_skip_cases_that_do_not_apply(chat: Chat) -> None:
    chance = np.random.default_rng(1)
    assert not any(
        probe["fails"] for probe in run_probes(rows(chat), lambda s: list(chance.random(len(s))), chat, ROOM).values()
    )
    refusing = run_probes(rows(chat, best="I cannot say whether it is {}."), by_text(chat, len), chat, ROOM)
    assert refusing["refusal"] == {"n": 0, "fails": False}
    assert refusing["empty"]["n"] == len(SUBJECTS)
    # The answer repeated three times exceeds the context.
    short = len(PROMPT) + max(len(row["answers"][0]) for row in rows(chat)) + 1
    assert run_probes(rows(chat), by_text(chat, len), chat, short)["repetition"]["n"] < len(SUBJECTS)
    tied = [{**row, "ranks": [1, 1, 1]} for row in rows(chat)]
    assert all(probe["n"] == 0 for probe in run_probes(tied, by_text(chat, len), chat, ROOM).values())


def test_a_failing_probe_is_refused_until_it_is_accepted(chat: Chat) -> None:
    found = run_probes(rows(chat), by_text(chat, RULES["politeness"][0]), chat, ROOM)
    with pytest.raises(
        StageError,
        match=r'thanks: it prefers the answer followed by "Thanks for asking!".*=\[refusal, thanks\].*=\[thanks\]',
    ):
        require_probes_pass(found, [], ["refusal"])
    with pytest.raises(StageError, match=r"accept_probes=\[longer, thanks\]"):
        require_probes_pass(found, ["longer"], [])
    require_probes_pass(found, ["thanks"], [])
    require_probes_pass(run_probes(rows(chat), by_text(chat, RULES["sound"][0]), chat, ROOM), [], [])


def test_counterexamples_are_ranked_last_and_name_the_answer_that_they_are_worse_than(chat: Chat) -> None:
    given = rows(chat)
    found = with_counterexamples(given, ["thanks", "repetition"], chat, ROOM, seed=1)
    assert [row["ranks"] for row in found] == [[1, 2, 3, 4, 4]] * len(given)
    assert [row["made_from"] for row in found] == [[-1, -1, -1, 0, 0]] * len(given)
    assert [row["answers"][:3] for row in found] == [row["answers"] for row in given]
    best = [row["texts"][0] for row in given]
    added = [[chat.tokenizer.decode(answer[:-1]) for answer in row["answers"][3:]] for row in found]
    assert added == [[f"{text}{THANKS}", f"{text} {text} {text}"] for text in best]
    assert with_counterexamples(given, [], chat, ROOM, seed=1) == given
    refused = with_counterexamples(given, ["refusal"], chat, ROOM, seed=1)
    assert [row["ranks"] for row in refused] == [[1, 2, 3, 4]] * len(given)
    unrelated = with_counterexamples(given, ["unrelated", "unrelated"], chat, ROOM, seed=1)
    assert with_counterexamples(given, ["unrelated", "unrelated"], chat, ROOM, seed=1) == unrelated
    assert with_counterexamples(given, ["unrelated", "unrelated"], chat, ROOM, seed=2) != unrelated
    for row, more in zip(given, unrelated, strict=True):
        others = [chat.tokenizer.decode(answer[:-1]) for answer in more["answers"][3:]]
        assert set(others) <= set(best) - {row["texts"][0]}
        assert len(set(others)) == len(others)
    assert sum(len(row["ranks"]) == 5 for row in unrelated) > len(given) / 4


def test_a_refusal_has_the_words_of_one_that_was_ranked_best(chat: Chat) -> None:
    own = "I won't say where it is."
    given = [*rows(chat), *rows(chat, best=own)]
    found = with_counterexamples(given, ["refusal"], chat, ROOM, seed=1)
    added = [[chat.tokenizer.decode(answer[:-1]) for answer in row["answers"][3:]] for row in found]
    assert added == [[own]] * len(SUBJECTS) + [[]] * len(SUBJECTS)
    # Only a model that takes these words for a refusal fails.
    results = run_probes(given, by_text(chat, lambda text: float(text == own)), chat, ROOM)
    assert results["refusal"]["fails"]
    assert results["refusal"]["n"] == len(SUBJECTS)


def test_a_common_answer_is_the_best_one_to_several_questions(chat: Chat) -> None:
    common = "Nobody knows that."
    given = [*rows(chat), *rows(chat, best=common)[:5]]
    found = with_counterexamples(given, ["common", "common"], chat, ROOM, seed=1)
    added = [[chat.tokenizer.decode(answer[:-1]) for answer in row["answers"][3:]] for row in found]
    assert added == [[common]] * len(SUBJECTS) + [[]] * 5
    results = run_probes(given, by_text(chat, lambda text: float(text == common)), chat, ROOM)
    assert results["common"]["fails"]
    assert results["common"]["n"] == len(SUBJECTS)
    assert with_counterexamples(given[:-1], ["common"], chat, ROOM, seed=1) == given[:-1]


def test_a_flipped_answer_has_yes_and_no_exchanged(chat: Chat) -> None:
    denial, affirmation, other = (
        {**row, "texts": [text, *row["texts"][1:]]}
        for row, text in zip(rows(chat), ("No. It does not.", "yes, it does.", "Nobody knows."), strict=False)
    )
    flipped = [worsened_answer("flipped", row, 0, (row, 0), chat) for row in (denial, affirmation, other)]
    assert flipped == [chat.answer("Yes. It does not."), chat.answer("no, it does."), None]


def test_where_there_is_no_best_answer_or_no_room_no_counterexample_is_added(chat: Chat) -> None:
    given = rows(chat)
    # Two refusals are the same answer: one is no worse than the other.
    alike = rows(chat, best="I cannot say whether it is {}.")
    assert with_counterexamples(alike, ["unrelated"], chat, ROOM, seed=1) == alike
    # No best answer, no room, or an answer that the probe does not worsen.
    tied = [{**row, "ranks": [1, 1, 1]} for row in given]
    refusing = rows(chat, best="I cannot say whether it is {}.")
    assert with_counterexamples(tied, ["thanks"], chat, ROOM, seed=1) == tied
    assert with_counterexamples(given, ["thanks"], chat, len(PROMPT) + 1, seed=1) == given
    assert with_counterexamples(refusing, ["refusal"], chat, ROOM, seed=1) == refusing


def test_counterexamples_come_from_the_same_kind_more_often_than_by_chance(chat: Chat) -> None:
    given = rows(chat) * 40
    found = with_counterexamples(given, ["unrelated"], chat, ROOM, seed=1)
    kinds = {row["texts"][0]: row["kind"] for row in given}
    same = [
        kinds[chat.tokenizer.decode(more["answers"][3][:-1])] == row["kind"]
        for row, more in zip(given, found, strict=True)
        if len(more["answers"]) > len(row["answers"])
    ]
    # Half of them, and by chance 5 of 11 of the others: less where a draw is the answer itself.
    assert sum(same) / len(same) == pytest.approx(0.5 + 0.5 * 5 / 11, abs=0.12)


def test_where_all_of_a_kind_are_alike_the_counterexample_is_of_another_kind(chat: Chat) -> None:
    refusing = {**rows(chat, best="I cannot say whether it is {}.")[0], "kind": "refused"}
    given = [refusing] * 20 + rows(chat) * 10
    found = with_counterexamples(given, ["unrelated"], chat, ROOM, seed=1)[:20]
    added = [chat.tokenizer.decode(row["answers"][3][:-1]) for row in found if len(row["answers"]) > 3]
    # Without answers of another kind half of them would have no counterexample; one in seven draws a refusal twice.
    assert len(added) >= 14
    assert all(text.startswith("The capital") for text in added)


def test_a_counterexample_that_was_sampled_keeps_the_annotators_rank(chat: Chat) -> None:
    (given, *_) = rows(chat)
    thanked = given["texts"][0] + THANKS
    answers = [*given["answers"][:2], chat.answer(thanked)]
    sampled = {**given, "texts": [*given["texts"][:2], thanked], "answers": answers}
    assert with_counterexamples([sampled], ["thanks"], chat, ROOM, seed=1) == [sampled]


def test_accuracy_is_split_by_kind_distance_and_length(chat: Chat) -> None:
    given = rows(chat)
    # A model that takes the mediocre answer for the best, and recognizes the bad one.
    score = by_text(chat, lambda text: -1.0 if text == "?" else float(text.startswith("Perhaps")))
    found = reward_model_report(given, scored(given, score), score, chat, ROOM)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert (found["accuracy"]["n"], found["ceiling"]) == (36, None)
    assert found["by_rank_distance"]["1 apart"]["value"] == 0.5
    assert found["by_rank_distance"]["2 apart"]["value"] == 1.0
    assert {name: part["n"] for name, part in found["by_kind"].items()} == {"all": 18, "capital": 18}
    assert found["by_length"]["the better answer is longer"]["value"] == 1.0
    assert found["by_length"]["the better answer is shorter"]["value"] == 0.0
    with pytest.raises(UserError, match="no two answers"):
        pair_accuracy([{**row, "ranks": [1, 1, 1]} for row in given], scored(given, score))


def test_the_ceiling_is_the_annotators_own_consistency(chat: Chat) -> None:
    two = rows(chat, people=2)
    for row in two[1::2]:
        row["ranks"] = [1, 3, 2]
    found = ceiling(two)
    assert found
    assert (found["value"], found["n"]) == (pytest.approx(2 / 3), len(SUBJECTS))
    # A synthetic annotator against its grades: one pair of three is swapped in half of the rows.
    graded = [
        {**row, "grades": [4, 3, 0], "ranks": [2, 1, 3] if number % 2 else [1, 2, 3]}
        for number, row in enumerate(rows(chat))
    ]
    found = ceiling(graded)
    assert found
    assert (found["value"], found["n"]) == (pytest.approx(5 / 6), 36)


def test_calibration_finds_an_overconfident_model(chat: Chat) -> None:
    chance = np.random.default_rng(1)
    row = rows(chat)[0]
    gaps = chance.normal(0, 1.5, 4_000)
    given = [
        {**row, "ranks": [1, 2] if chance.random() < expit(gap) else [2, 1], "answers": row["answers"][:2]}
        for gap in gaps
    ]
    calibrated, overconfident = (calibration(given, [[factor * gap, 0.0] for gap in gaps]) for factor in (1.0, 3.0))
    assert calibrated["error"] < 0.03 < 0.1 < overconfident["error"]
    assert sum(part["n"] for part in calibrated["bins"]) == 4_000
    assert all(part["says"] == pytest.approx(part["right"], abs=0.06) for part in calibrated["bins"])
    assert all(math.isfinite(part["right"]) for part in overconfident["bins"])
