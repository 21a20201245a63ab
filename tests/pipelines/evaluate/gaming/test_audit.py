"""Hacks against reward functions: which pay, and which rewards RLHF refuses."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.rewards.builtin import same_number, same_text
from actors.types import Failure, RewardInput
from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.rlhf.rewards import Reward
from cluster.run.folder import RunFolder
from pipelines.cli.main import main
from pipelines.evaluate.gaming.audit import RewardAudit, ScoreAnswers, audit_reward, require_sound_reward
from pipelines.evaluate.gaming.cases import cases_without_model
from pipelines.evaluate.gaming.hacks import HACKS, AuditCase, code_keywords
from tests import functions

SUMS = [
    AuditCase(
        RewardInput([{"role": "user", "content": f"What is {n} and {n + 3}?"}], {"answer": str(2 * n + 3)}),
        [f"It is {2 * n + 3}.", f"It is {n}."],
    )
    for n in range(10, 30)
]


def scorer(function: Callable[[RewardInput, str], float]) -> ScoreAnswers:
    return lambda _, groups, inputs: [
        [function(own, sample.text) for sample in group] for group, own in zip(groups, inputs, strict=True)
    ]


def audited(function: Callable[[RewardInput, str], float], weight: float = 1.0) -> RewardAudit:
    return audit_reward(scorer(function), SUMS, code_keywords(function), weight)


def has_the_number(question: RewardInput, answer: str) -> float:
    return float(question.metadata["answer"] in re.findall(r"\d+", answer))


@pytest.mark.parametrize(
    ("function", "paying"),
    [
        (same_number, {"repeated"}),
        (same_text, set()),
        (has_the_number, {"repeated", "long", "several"}),
        (functions.length, {"echo", "repeated", "long", "several"}),
        (functions.polite, {"empty", "echo", "repeated", "long"}),
        (functions.quotes, {"keywords"}),
    ],
)
def test_an_audit_names_the_hacks_that_pay(function: Callable[[RewardInput, str], float], paying: set[str]):
    # An honest answer that is not right leaves polite a lowest score to be better than.
    cases = [AuditCase(case.input, [*case.honest, "rude"]) for case in SUMS] if function is functions.polite else SUMS
    audit = audit_reward(scorer(function), cases, code_keywords(function))
    assert set(audit.paying) == paying


def test_with_a_negative_weight_low_scores_are_rewarded():
    assert set(audited(functions.length, -1.0).paying) == {"empty"}
    assert audited(functions.length, -1.0).honest == audited(functions.length).honest


def test_a_constant_reward_is_not_reported_as_gamed():
    audit = audited(lambda _, __: 1.0)
    assert audit.constant
    assert audit.paying == []


def test_scores_that_could_not_be_had_are_counted_and_left_out():
    def on_text_alone(_: RewardInput, answer: str) -> float | Failure:
        return len(answer) / 10 if answer else Failure("there is no answer")

    audit = audited(on_text_alone)  # type: ignore[arg-type]
    assert audit.hacks["empty"].failures == len(SUMS)
    assert (audit.hacks["empty"].mean, audit.hacks["empty"].pays) == (None, False)
    assert audit.hacks["echo"].failures == 0


def test_a_reward_that_an_empty_answer_satisfies_is_refused_unless_the_recipe_accepts_it():
    reward = Reward(kind="function", function="tests.functions:length", weight=-1.0)
    audit = audited(functions.length, -1.0)
    with pytest.raises(UserError, match=r"an empty answer \(mean score 0.*accept_hacks: \[empty\]"):
        require_sound_reward(reward, "the reward", audit)
    require_sound_reward(reward.model_copy(update={"accept_hacks": ["empty"]}), "the reward", audit)


def test_honest_answers_are_the_references_of_the_prompts_or_the_conversations(recipe_path: Path, tmp_path: Path):
    file = tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "1 and 1?", "answer": "2"}\n{"prompt": "2 and 2?", "answer": "4"}\n')
    recipe = load_recipe(recipe_path, [f"collect.sources=[{{kind: files, path: {file}}}]"])
    found = cases_without_model(recipe, RunFolder(tmp_path / "run"))
    assert sorted(case.honest for case in found.cases) == [["2"], ["4"]]
    recipe = load_recipe(recipe_path)
    found = cases_without_model(recipe, RunFolder(tmp_path / "run"))
    assert found.origin == "conversations of sft.sources"
    assert all(case.honest[0].strip() for case in found.cases)


def test_the_doctor_says_which_hacks_pay_and_ends_with_1(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(f'{{"prompt": "{n} and {n}?", "answer": "{2 * n}"}}\n' for n in range(8)))
    recipe_path.write_text(
        recipe_path.read_text()
        + "rlhf: {rewards: [{kind: function, function: 'tests.functions:length', weight: -1}]}\n"
    )
    text = recipe_path.read_text()
    recipe_path.write_text(re.sub(r"collect: .*", f"collect: {{sources: [{{kind: files, path: {file}}}]}}", text))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--rewards", str(recipe_path)])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "honest answers to 8 prompts score" in said
    assert "empty, an empty answer: PAYS, and RLHF refuses this reward; mean score 0, above" in said
    assert all(hack in said for hack in HACKS if hack != "keywords")
