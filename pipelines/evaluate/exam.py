"""Exams: held-out questions with a grader, supplied by a function that the recipe names, for every model of a run."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.model.chat import Chat
from actors.model.tokenizer import begin_of_text, end_token_ids
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sample, Sampling
from cluster.errors import UserError
from cluster.recipe.functions import load_function
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
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
    """

    question: Question
    text: str
    stopped: bool
    right: bool


@dataclass(frozen=True)
class Figure:
    """A figure by which models are compared: the share of answers that count.

    Attributes:
        name: key in report.json.
        title: name on the page.
        clause: a predicate for the verdict, as in "the policy ... in 3 % of cases".
        kind: the kind of question whose answers are the whole; None for all kinds.
        higher_is_better: whether a larger share is better.
        counts: whether an answer counts.
        asked: whether a question of that kind belongs to the whole, by its form or its earlier turns; by default all.
    """

    name: str
    title: str
    clause: str
    kind: str | None
    higher_is_better: bool
    counts: Callable[[GradedAnswer], bool]
    asked: Callable[[Question], bool] = lambda _: True

    def of(self, question: Question) -> bool:
        """Tells whether answers to a question belong to the whole."""
        return self.kind in (None, question.kind) and self.asked(question)


@dataclass(frozen=True)
class Exam:
    """The value of the recipe's `evaluate.exam` function: function(seed, **arguments) -> Exam.

    Attributes:
        title: heading of the exam's part of the report.
        note: what was held out, and how answers are graded.
        questions: held out from all training.
        right: the grader: whether a text is a right answer to a question.
        figures: by which models are compared.
        kinds: the title and a note for each kind of question, in the report's order.
        completions: by an id, the beginning of a sentence and its right continuation, for the base model.
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
        exam = function(seed=recipe.seed, **call.arguments)
    # A user's function may raise anything.
    except Exception as error:
        raise UserError(f"evaluate.exam: {call.function} raised {type(error).__name__}: {error}") from error
    if not isinstance(exam, Exam):
        raise UserError(
            f"evaluate.exam: {call.function} returned a {type(exam).__name__}; it must return a {Exam.__module__}.Exam"
        )
    if fault := _fault(exam):
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
    """Computes all figures of one model, by name, from its answers to all questions."""
    figures = {}
    for figure in exam.figures:
        whole = [answer for answer in answers if figure.of(answer.question)]
        figures[figure.name] = proportion(sum(map(figure.counts, whole)), len(whole))
    return figures


def exam_changes(exam: Exam, before: Sequence[GradedAnswer], after: Sequence[GradedAnswer]) -> dict[str, ShareChange]:
    """Computes the change of every figure, by name, from one model's answers to another's, paired by question."""
    changes = {}
    for figure in exam.figures:
        pairs = [pair for pair in zip(before, after, strict=True) if figure.of(pair[0].question)]
        changes[figure.name] = paired_shares(*([figure.counts(pair[side]) for pair in pairs] for side in (0, 1)))
    return changes


@dataclass(frozen=True)
class ExamRunner:
    """Runs an exam with the models of a run.

    A base model without a chat template continues the bare text; the others get a chat.
    """

    exam: Exam
    run: RunFolder
    chat: Chat
    base: PreTrainedTokenizerBase
    sampling: Sampling
    context: int

    @classmethod
    def of(cls, exam: Exam, recipe: Recipe, run: RunFolder) -> "ExamRunner":
        """Makes a runner whose models answer greedily with at most `evaluate.max_tokens` tokens."""
        greedy = Sampling(1, 0.0, recipe.evaluate.max_tokens, recipe.seed)
        base = AutoTokenizer.from_pretrained(run.path("base"))
        return cls(exam, run, Chat.of(run.path("sft")), base, greedy, recipe.model.context)

    def answers(self, fleet: Fleet, name: str) -> list[GradedAnswer]:
        """Samples a model's answers to all questions, and grades them.

        Args:
            fleet: rollout actors that hold the model's weights.
            name: the model: base, sft or policy.

        Raises:
            UserError: a question leaves no room for an answer.
        """
        model, questions = self.run.path(name), self.exam.questions
        if name == "base" and not self.base.chat_template:
            tokenizer = self.base
            prompts = {q.id: self._bare("\n".join(turn["content"] for turn in q.messages)) for q in questions}
        else:
            # A model that was taken over, such as an instruction-tuned one, brings its own template.
            chat = Chat(self.base) if name == "base" else self.chat
            tokenizer, prompts = chat.tokenizer, {q.id: chat.prompt(q.messages) for q in questions}
        room = self.context - self.sampling.max_tokens
        if long := next((key for key, ids in prompts.items() if len(ids) > room), None):
            raise UserError(
                f"evaluate.exam: the question {long!r} has {len(prompts[long])} tokens, and {room} leave room for an "
                "answer (model.context - evaluate.max_tokens): shorten it"
            )
        samples = fleet.generate([Prompt(key, ids) for key, ids in prompts.items()], self.sampling)
        return _graded(self.exam, samples, model, tokenizer)

    def completion(self, fleet: Fleet) -> Proportion | None:
        """Measures how often the fleet's weights continue the exam's sentences rightly; None without sentences."""
        sentences = self.exam.completions
        if not sentences:
            return None
        prompts = [Prompt(name, self._bare(begin)) for name, (begin, _) in sentences.items()]
        samples = fleet.generate(prompts, self.sampling)
        hits = sum(continues_right(wanted, samples[name][0].text) for name, (_, wanted) in sentences.items())
        return proportion(hits, len(sentences))

    def _bare(self, text: str) -> list[int]:
        return begin_of_text(self.base) + self.base.encode(text, add_special_tokens=False)


def continues_right(wanted: str, text: str) -> bool:
    """Tells whether a continuation begins with the wanted words."""
    return text.strip().startswith(wanted.strip())


def grade_answer(
    exam: Exam, question: Question, token_ids: Sequence[int], ends: Collection[int], tokenizer: Any
) -> GradedAnswer:
    """Grades an answer up to its first end token.

    The engine stops at the chat's end token alone; with greedy decoding, cutting a base model's answer at its own end
    token is the same as stopping there.

    Args:
        token_ids: the generated tokens.
        ends: the model's end tokens.
        tokenizer: the model's.
    """
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    text = tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True).strip()
    return GradedAnswer(question, text, end is not None, exam.right(question, text))


def _graded(
    exam: Exam, samples: Mapping[str, list[Sample]], model: Path, tokenizer: PreTrainedTokenizerBase
) -> list[GradedAnswer]:
    ends = end_token_ids(model, tokenizer)
    return [grade_answer(exam, q, samples[q.id][0].token_ids, ends, tokenizer) for q in exam.questions]
