"""Judges behind a real HTTP server: honest, and with planted biases."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import StageError, UserError
from cluster.feedback import COMPARED, Completion, FeedbackPrompt, Ranking, open_feedback
from pipelines.evaluate.judge.asking import verdict
from pipelines.evaluate.judge.pairs import Pair, between, preference_pairs, report_pairs, voted_pairs
from pipelines.evaluate.judge.run import compare_by_judge, compare_by_votes
from pipelines.evaluate.tasks.http_model import HttpModel
from tests.openai_server import coded_server

SHOWN = re.compile(r"\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End of answer B\]", re.DOTALL)
# Half of the better answers are the longer ones.
PEOPLE = [Pair(f"question {n}", "good" + " so" * (n % 2) * 5, "bad" + " so" * 3, 1.0) for n in range(12)]
ANSWERS = [Pair(f"prompt {n}", "good", "bad and longer", models=("policy", "sft")) for n in range(6)]


def shown(text: str) -> tuple[str, str]:
    found = SHOWN.search(text)
    assert found
    return found.group(1), found.group(2)


def honest(text: str) -> str:
    first, second = shown(text)
    if ("good" in first) == ("good" in second):
        return "Both are alike. [[C]]"
    return "It is right. [[A]]" if "good" in first else "[[B]]"


def positional(text: str) -> str:
    shown(text)
    return "[[A]]"


def wordy(text: str) -> str:
    first, second = shown(text)
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def compared(say: Callable[[str], str], tmp_path: Path, **more: Any) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=400)
    with coded_server(say, "coded") as server:
        judge = HttpModel.of(server.url, None)
        given = {"people": PEOPLE, "least": 0.6, "accepted": None, **more}
        compare_by_judge(judge, "coded", ANSWERS, out=tmp_path / "judged.json", console=console, **given)
    return json.loads((tmp_path / "judged.json").read_text()), console.export_text()


@pytest.mark.slow
def test_an_honest_judge_agrees_with_people_and_counts_wins(tmp_path: Path):
    found, said = compared(honest, tmp_path)
    assert found["agreement"]["agreement"]["value"] == 1
    assert found["win_rate"]["raw"]["value"] == 1
    assert found["first_shown"]["value"] == 0.5
    assert "coded agrees with people in 100%" in said
    assert "policy against sft by coded: wins 100%" in said
    assert len(found["pairs"]) == len(ANSWERS)


@pytest.mark.slow
def test_a_planted_position_bias_is_found_out(tmp_path: Path):
    with pytest.raises(UserError, match=r"may be as low as 0.50, and --least is 0.6.*--accept-judge coded"):
        compared(positional, tmp_path)
    found, said = compared(positional, tmp_path, accepted="coded")
    assert found["agreement"]["inconsistent"] == 1
    assert "100% of its verdicts (76% to 100%) are for the answer shown first: it goes by the position" in said
    # Both orders together make it no win.
    assert found["win_rate"]["raw"]["value"] == 0.5
    assert found["win_rate"]["ties"] == 1


@pytest.mark.slow
def test_a_planted_length_bias_is_found_out(tmp_path: Path):
    found, said = compared(wordy, tmp_path, accepted="coded")
    assert found["agreement"]["longer_preferred"]["value"] == 1
    assert found["agreement"]["shorter_preferred"]["value"] == 0
    assert "prefers the longer answer in 100%, people in 50%" in said
    with pytest.raises(UserError, match="coded is not taken as a judge"):
        compared(wordy, tmp_path)


def test_without_people_a_judge_has_to_be_named(tmp_path: Path):
    with pytest.raises(UserError, match="there are no pairs on which people decided"):
        compared(honest, tmp_path, people=[])
    assert compared(honest, tmp_path, people=[], accepted="coded")[0]["agreement"] is None


def test_a_judge_that_gives_no_verdicts_is_refused(tmp_path: Path):
    with pytest.raises(StageError, match="no verdict on 12 of 12 pairs"):
        compared(lambda _: "I like both [[A]] and [[B]]", tmp_path)


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("[[A]]", 1),
        ("Hm. [[B]].", 0),
        ("[[C]]", 0.5),
        ("B", 0),
        (" A.\n", 1),
        ("A is bad", None),
        ("", None),
        (None, None),
    ],
)
def test_a_verdict_is_read_from_brackets_or_a_letter_alone(said: str | None, value: float | None):
    assert verdict(said) == value


def test_peoples_votes_are_a_judge_too(tmp_path: Path):
    with open_feedback(f"sqlite:///{tmp_path}/feedback.db") as database:
        names = [f"{COMPARED}{n}" for n in range(6)]
        database.add_prompts([FeedbackPrompt(id=name, messages=[{"role": "user", "content": name}]) for name in names])
        votes = []
        for n, name in enumerate(names):
            # The two models come first in turn.
            models = ("policy", "sft") if n % 2 else ("sft", "policy")
            rows = [
                Completion(
                    prompt_id=name, index=place, text=model, token_ids=[1], model=model, weights=model, sampling={}
                )
                for place, model in enumerate(models)
            ]
            ids = dict(zip(models, database.add_completions(rows), strict=True))
            ranks = {str(ids["policy"]): 1, str(ids["sft"]): 1 if n == 0 else 2}
            votes.append(Ranking(prompt_id=name, annotator="ann", ranks=ranks, presented=list(ids.values())))
        database.add_rankings(votes)
        pairs = between(voted_pairs(database), "policy", "sft")
    console = Console(record=True, width=300)
    rate = compare_by_votes(pairs, tmp_path / "judged.json", console)
    assert rate.raw.value == pytest.approx(5.5 / 6)
    assert "policy against sft by people's votes: wins 92%" in console.export_text()
    with pytest.raises(UserError, match="nobody has compared"):
        compare_by_votes(between(pairs, "policy", "base"), tmp_path / "judged.json", console)


def test_answers_and_preferences_are_read_from_files(tmp_path: Path):
    report, people = tmp_path / "answers.json", tmp_path / "people.jsonl"
    rows = [
        {"question": "Hi", "answers": {"sft": {"text": "No"}, "policy": {"text": "Hello"}}},
        {"question": "?", "answers": {}},
    ]
    report.write_text(json.dumps(rows))
    assert report_pairs(report, "policy", "sft") == [Pair("Hi", "Hello", "No", models=("policy", "sft"))]
    with pytest.raises(
        UserError, match=r"no question that policy and base answered; it has answers of \['policy', 'sft'\]"
    ):
        report_pairs(report, "policy", "base")
    people.write_text('{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}\n{"prompt": "Hi"}\n')
    with pytest.raises(UserError, match="line 2: prompt, chosen and rejected must be texts"):
        preference_pairs(people)
