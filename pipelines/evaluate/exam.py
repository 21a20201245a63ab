"""Exams: held-out questions with a grader, supplied by a function that the recipe names, for every model of a run."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from cluster.errors import StageError, UserError
from cluster.recipe.functions import SOURCE_SECONDS, call_within, failure_reason, load_function
from cluster.recipe.recipe import Recipe
from pipelines.evaluate.stats import Proportion, ShareChange, paired_shares, proportion

# The form of a question that is asked in clean English.
PLAIN = "plain"


@dataclass(frozen=True)
class Question:
    """A question of an exam.

    Attributes:
        id: unique in the exam.
        kind: category, by which answers are graded and counted.
        text: the user's message, the last one of a conversation.
        key: reference for the exam's grader, such as words of the right answer.
        earlier: the conversation before it, as `{"role": "user" or "assistant", "content": ...}`; empty for one turn.
        form: how it is asked, such as with typing errors; figures can be of some forms alone.
    """

    id: str
    kind: str
    text: str
    key: str = ""
    earlier: tuple[Mapping[str, str], ...] = ()
    form: str = PLAIN

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation, up to the answer."""
        return [*map(dict, self.earlier), {"role": "user", "content": self.text}]

    @property
    def shown(self) -> str:
        """The conversation as text for a reader, an assistant's turns behind an arrow."""
        return "\n".join(f"{'→ ' * (turn['role'] == 'assistant')}{turn['content']}" for turn in self.messages)


@dataclass(frozen=True)
class GradedAnswer:
    """A model's graded answer to a question.

    Attributes:
        question: the question.
        text: the answer, without special tokens.
        stopped: whether the model ended the answer itself, and not the length limit.
        right: the grader's judgment.
        failure: why there is none, in words; empty if there is.
    """

    question: Question
    text: str
    stopped: bool
    right: bool
    failure: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure by which models are compared: the share of the answers to some questions that count.

    Attributes:
        name: key in report.json.
        title: name on the page.
        clause: a predicate for the verdict, as in "the policy ... in 3 % of cases".
        kind: the kind of question in the share's denominator; None for all kinds.
        higher_is_better: whether a larger share is better.
        counts: whether an answer counts, so that it is in the share's numerator.
        asked: whether a question of that kind is in the denominator, by its form or its earlier turns; by default all.
    """

    name: str
    title: str
    clause: str
    kind: str | None
    higher_is_better: bool
    counts: Callable[[GradedAnswer], bool]
    asked: Callable[[Question], bool] = lambda _: True

    def of(self, question: Question) -> bool:
        """Tells whether answers to a question are in the share's denominator."""
        return self.kind in (None, question.kind) and self.asked(question)


@dataclass(frozen=True)
class Exam:
    """The value of the recipe's `evaluate.exam` function: function(seed, **arguments) -> Exam.

    Attributes:
        title: heading of the exam's part of the report.
        note: what was held out, and how answers are graded.
        questions: held out from all training.
        right: the grader: whether a text is a right answer to a question.
        figures: the figures by which models are compared.
        kinds: the title and a note for each kind of question, in the report's order.
        completions: the beginning of a sentence and its right continuation, by an id, for the base model.
        completion_title: title of the share of right continuations.
        tax: name of the figure whose loss in RLHF is reported as the alignment tax; None for none.
    """

    title: str
    note: str
    questions: Sequence[Question]
    right: Callable[[Question, str], bool]
    figures: Sequence[Figure]
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    completions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    completion_title: str = "Base completes sentences"
    tax: str | None = None


def load_exam(recipe: Recipe) -> Exam | None:
    """Calls the recipe's exam function.

    Returns:
        None without an exam, and in multi-turn RLHF, whose policy expects its environment's turns.

    Raises:
        UserError: the function cannot be loaded, raises, or returns no exam.
    """
    call = recipe.evaluate.exam
    if call is None or recipe.rlhf.environment:
        return None
    function = load_function(call.function, "exam")
    try:
        exam = call_within(SOURCE_SECONDS, partial(function, seed=recipe.seed, **call.arguments))
    # A user's function may raise anything.
    except Exception as error:
        raise UserError(f"evaluate.exam: {call.function} {failure_reason(error)}") from error
    if not isinstance(exam, Exam):
        raise UserError(
            f"evaluate.exam: {call.function} returned a {type(exam).__name__}; it must return a {Exam.__module__}.Exam"
        )
    try:
        fault = _fault(exam)
    # The figures' functions are the user's too.
    except Exception as error:
        raise UserError(f"evaluate.exam: a figure of {call.function} {failure_reason(error)}") from error
    if fault:
        raise UserError(f"evaluate.exam: {call.function} returned an exam {fault}")
    return exam


def _fault(exam: Exam) -> str | None:
    """Returns the fault of an exam, to follow "an exam", or None."""
    for what, names in (("questions", [q.id for q in exam.questions]), ("figures", [f.name for f in exam.figures])):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            return f"with two {what} called {twice[0]!r}: give each its own name"
    for figure in exam.figures:
        if not any(map(figure.of, exam.questions)):
            return f"without any question for its figure {figure.name}: ask some, or leave the figure out"
    if exam.tax is not None and exam.tax not in {figure.name for figure in exam.figures}:
        return f"whose tax, {exam.tax!r}, is none of its figures"
    return None


def exam_figures(exam: Exam, answers: Sequence[GradedAnswer]) -> dict[str, Proportion]:
    """Computes all figures of one model, by name, from its graded answers.

    Raises:
        StageError: a figure has no graded answer.
    """
    figures = {}
    for figure in exam.figures:
        whole = [answer for answer in answers if figure.of(answer.question)]
        if not whole:
            raise StageError(
                f"evaluate.exam: the grader failed on every question of the figure {figure.name}: fix it, or leave "
                "the figure out"
            )
        figures[figure.name] = proportion(sum(map(figure.counts, whole)), len(whole))
    return figures


def exam_changes(exam: Exam, before: Sequence[GradedAnswer], after: Sequence[GradedAnswer]) -> dict[str, ShareChange]:
    """Computes the change of every figure, by name, from one model's answers to another's, paired by question."""
    changes = {}
    for figure in exam.figures:
        pairs = [pair for pair in zip(before, after, strict=True) if figure.of(pair[0].question)]
        changes[figure.name] = paired_shares(*([figure.counts(pair[side]) for pair in pairs] for side in (0, 1)))
    return changes
