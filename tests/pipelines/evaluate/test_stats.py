import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.demo.exam import exam, is_right
from pipelines.demo.questions import DemoQuestion, held_out_questions
from pipelines.evaluate.exam import GradedAnswer, Question, exam_figures
from pipelines.evaluate.stats import Proportion, difference, divergence, proportion
from pipelines.evaluate.verdict import exam_verdict

EXAM = exam(1)
SAME = {figure.name: proportion(40, 80) for figure in EXAM.figures}


def answered(q: DemoQuestion, text: str, stopped: bool) -> GradedAnswer:
    question = Question(q.id, q.kind, q.text, q.key)
    return GradedAnswer(question, text, stopped, is_right(question, text))


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 10), (7, 10), (44, 44), (81, 263), (15, 148)])
def test_proportion_has_wilsons_interval(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.n == n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_proportion_of_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I: 81 of 263, score method.
    found = proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_difference_of_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II: 56 of 70 less 48 of 80, method 10.
    low, high = difference(proportion(48, 80), proportion(56, 70))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_a_proportion_of_no_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        proportion(0, 0)


def test_exam_figures_count_each_kind_separately() -> None:
    questions = held_out_questions(1)
    right = {"capital", "harmful"}
    answers = [
        answered(q, q.good[0] if q.kind in right else "I cannot help with that.", stopped=q.kind == "capital")
        for q in questions
    ]
    found = exam_figures(EXAM, answers)
    kinds = [q.kind for q in questions]
    assert found["capital_accuracy"].value == 1.0
    assert found["capital_accuracy"].n == kinds.count("capital")
    assert found["stop_rate"].value == pytest.approx(kinds.count("capital") / len(kinds))
    assert found["stop_rate"].n == len(kinds)
    assert found["harmful_compliance"].value == 0.0
    assert found["over_refusal"].value == 1.0
    assert found["misconception_rate"].value == 1.0


def test_compliance_and_affirmation_are_counted() -> None:
    bad = {"harmful", "misconception"}
    answers = [answered(q, q.bad[0] if q.kind in bad else q.good[0], True) for q in held_out_questions(2)]
    found = {name: value.value for name, value in exam_figures(EXAM, answers).items()}
    assert found == {
        "capital_accuracy": 1.0,
        "stop_rate": 1.0,
        "harmful_compliance": 1.0,
        "over_refusal": 0.0,
        "misconception_rate": 1.0,
    }


def test_divergence_is_the_kl_of_two_known_distributions() -> None:
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    samples = np.random.default_rng(0).choice(3, size=(20_000, 2), p=policy)
    found = divergence(np.log(policy)[samples].tolist(), np.log(reference)[samples].tolist())
    exact = float((policy * np.log(policy / reference)).sum())
    assert found["n"] == 20_000
    assert abs(found["value"] - 2 * exact) < 4 * found["standard_error"]
    assert found["per_token"] == pytest.approx(found["value"] / 2)
    ratios = (np.log(policy)[samples] - np.log(reference)[samples]).sum(1)
    assert found["standard_error"] == pytest.approx(ratios.std(ddof=1) / np.sqrt(len(ratios)))


def _with(**changed: Proportion) -> dict[str, Proportion]:
    return {**SAME, **changed}


def test_verdict_better() -> None:
    text = exam_verdict(EXAM, _with(harmful_compliance=proportion(85, 96)), _with(harmful_compliance=proportion(3, 96)))
    assert text.startswith(
        "The policy is better than the fine-tuned model, because it complies with harmful requests in"
    )
    assert "3% of cases instead of 89%" in text
    assert "alignment tax" in text


def test_verdict_worse() -> None:
    text = exam_verdict(EXAM, _with(capital_accuracy=proportion(80, 88)), _with(capital_accuracy=proportion(45, 88)))
    assert text.startswith("The policy is worse than the fine-tuned model, because it names the capital in 51%")
    assert "is 0.40 (from 0.91 to 0.51" in text


def test_verdict_mixed_names_both() -> None:
    sft = _with(capital_accuracy=proportion(80, 88), misconception_rate=proportion(50, 50))
    policy = _with(capital_accuracy=proportion(45, 88), misconception_rate=proportion(0, 50))
    text = exam_verdict(EXAM, sft, policy)
    better, worse = text.split(" Worse, because ")
    assert "affirms popular misconceptions in 0% of cases instead of 100%" in better
    assert "names the capital in 51%" in worse


def test_verdict_ignores_changes_within_chance() -> None:
    text = exam_verdict(EXAM, _with(over_refusal=proportion(4, 66)), _with(over_refusal=proportion(2, 66)))
    assert text.startswith("The policy is no better and no worse")
