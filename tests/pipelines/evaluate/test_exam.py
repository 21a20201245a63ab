import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import StageError, UserError
from cluster.recipe.recipe import Recipe
from pipelines.data.call_failures import LATE_IN_A_ROW
from pipelines.evaluate.exam import Exam, Figure, Question, exam_figures, load_exam
from pipelines.evaluate.exam_runner import Grader, graded_for_all, grading_failures
from tests.demo_recipe import COUNTRIES, DEMO
from tests.pipelines.evaluate.planted import EXAM, PER_KIND, REFUSAL, model

BROKEN: dict[str, Exam] = {}


def broken_exam(seed: int, name: str) -> Exam:
    return BROKEN[name]


def test_figures_count_each_kind_separately() -> None:
    found = exam_figures(EXAM, model(bread=REFUSAL, wrong={"bread": 10}, truth="No."))
    assert {name: (figure.value, figure.n) for name, figure in found.items()} == {
        "knowledge": (0.75, PER_KIND),
        "harm": (0.0, PER_KIND),
        "over_refusal": (0.25, PER_KIND),
        "true_denial": (1.0, PER_KIND),
        "stop_rate": (1.0, 3 * PER_KIND),
    }


def test_a_figure_may_count_some_forms_of_a_kind() -> None:
    questions = [Question("a", "bread", "Wheat?"), Question("b", "bread", "wheta?", form="typo")]
    figure = Figure("robust", "", "", "bread", True, lambda a: a.right, lambda question: question.form == "typo")
    assert [figure.of(question) for question in questions] == [False, True]


def test_a_question_of_a_second_turn_has_the_whole_conversation() -> None:
    earlier = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"})
    asked = Question("a", "bread", "Wheat?", earlier=earlier)
    assert [turn["content"] for turn in asked.messages] == ["Hi", "Hello!", "Wheat?"]
    assert [turn["role"] for turn in asked.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda exam: replace(exam, questions=[*exam.questions, exam.questions[0]]), "two questions called 'bread 0'"),
        (lambda exam: replace(exam, figures=[*exam.figures, exam.figures[0]]), "two figures called 'knowledge'"),
        (lambda exam: replace(exam, questions=exam.questions[:PER_KIND]), "without any question for its figure harm"),
        (lambda exam: replace(exam, tax="gold"), "whose tax, 'gold', is none of its figures"),
    ],
)
def test_a_faulty_exam_is_refused_in_one_line(change: Callable[[Exam], Exam], message: str) -> None:
    BROKEN["it"] = change(EXAM)
    call = {"function": f"{__name__}:broken_exam", "arguments": {"name": "it"}}
    recipe = Recipe.model_validate(
        {"name": "x", "corpus": {"sources": [COUNTRIES]}, **DEMO, "evaluate": {"exam": call}}
    )
    with pytest.raises(UserError, match=message):
        load_exam(recipe)


def _unsound(question: Question, text: str) -> Any:
    if text == "hang":
        time.sleep(60)
    if text == "raise":
        raise KeyError("no\nkey")

    async def later() -> bool:
        return True

    return later() if text == "later" else text == "yes"


UNSOUND = replace(EXAM, right=_unsound)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise", r"raised KeyError: 'no\nkey'"),
        ("hang", "took longer than 0.5 s"),
        ("later", "raised TypeError: it is a coroutine function, and must be a plain one"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_answer_that_cannot_be_graded_is_named_and_others_count(text: str, reason: str) -> None:
    grader = Grader(UNSOUND, "bread:exam", seconds=0.5, limit=0.01)
    bad, *others = EXAM.questions
    failed = grader.grade(bad, text, True)
    assert failed.failure == (
        f"the grader of the exam bread:exam {reason}, for the question 'bread 0' and the answer {text!r}"
    )
    assert [grader.grade(one, "yes", True).right for one in others] == [True] * len(others)
    with pytest.raises(StageError, match=r"2 of 120 gradings failed, and evaluate.max_failed_gradings allows 1%"):
        grader.grade(bad, text, True)


def test_a_figure_that_raises_fails_the_grading() -> None:
    bad = Figure("bad", "", "", "bread", True, lambda a: a.text[5] == "x")
    grader = Grader(replace(EXAM, figures=[bad]), "bread:exam", limit=1.0)
    assert "raised IndexError" in grader.grade(EXAM.questions[0], "no", True).failure
    assert not grader.grade(EXAM.questions[0], "longer", True).failure


def test_a_grader_that_hangs_ends_the_stage_before_all_answers_have_waited() -> None:
    grader = Grader(UNSOUND, "bread:exam", seconds=0.02, limit=1.0)
    with pytest.raises(StageError, match=f"'hang', as did each of the last {LATE_IN_A_ROW} calls: it seems to hang"):
        [grader.grade(question, "hang", True) for question in EXAM.questions]


def test_questions_with_a_failure_are_left_out_for_all_models() -> None:
    sft, policy = model(), model()
    sft[0] = replace(sft[0], failure="it fails")
    graded = graded_for_all({"sft": sft, "policy": policy})
    assert [len(given) for given in graded.values()] == [3 * PER_KIND - 1] * 2
    assert exam_figures(EXAM, graded["policy"])["knowledge"].n == PER_KIND - 1
    assert grading_failures({"sft": sft, "policy": policy}) == {
        "failed_gradings": {"sft": 1, "policy": 0},
        "grading_failures": ["it fails"],
    }
    with pytest.raises(StageError, match="failed on every question of the figure knowledge"):
        exam_figures(EXAM, policy[PER_KIND:])
