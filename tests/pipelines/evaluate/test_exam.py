from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from pipelines.evaluate.exam import Exam, Figure, Question, exam_figures, load_exam
from tests.pipelines.evaluate.planted import EXAM, PER_KIND, REFUSAL, model
from tests.world import COUNTRIES, DEMO

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
