"""Exams: held-out questions with a grader, which a recipe names as module:function, put to every model of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.rewards.function import load_function
from actors.types import Prompt, Sample, Sampling
from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.evaluate.stats import Proportion, proportion


@dataclass(frozen=True)
class Question:
    """A question of an exam.

    Attributes:
        id: unique in the exam.
        kind: decides how an answer is graded, and by which figures it is counted.
        text: the user's words.
        key: what a right answer is known by, for the exam's grader.
    """

    id: str
    kind: str
    text: str
    key: str = ""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question. `stopped`: it ended by itself and was not cut; `right`: as the grader says."""

    question: Question
    text: str
    stopped: bool
    right: bool


@dataclass(frozen=True)
class Figure:
    """A figure that models are compared by.

    Attributes:
        name: its key in report.json.
        title: its name on the page.
        clause: what the model does, as in "the policy ... in 3 % of cases".
        kind: the kind of question it is counted over; None counts over all.
        higher_is_better: the direction.
        counts: whether an answer counts.
    """

    name: str
    title: str
    clause: str
    kind: str | None
    higher_is_better: bool
    counts: Callable[[Answer], bool]


@dataclass(frozen=True)
class Exam:
    """What a recipe's `evaluate.exam` function gives: function(seed, **arguments) -> Exam.

    Attributes:
        title: of its part of the report.
        note: what was held out, and how answers are graded.
        questions: held out from all training.
        right: whether a text is a right answer to a question.
        figures: by which models are compared.
        kinds: kind to its title and a note, in the report's order.
        completions: beginnings of sentences and how the base model should go on, each with an id.
        completion_title: what the base model does when it goes on rightly, for the report.
        tax: the name of the figure whose loss in RLHF is the alignment tax.
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
    """The exam that the recipe names; None without one, or in multi-turn RLHF, whose environment does not know it.

    Raises:
        UserError: there is no such function, it fails, or gives something else than an exam.
    """
    call = recipe.evaluate.exam
    if call is None or recipe.rlhf.environment:
        return None
    function = load_function(call.function, "exam")
    try:
        exam = function(seed=recipe.seed, **call.arguments)
    # The function is the user's own, and may fail in any way.
    except Exception as error:
        raise UserError(f"evaluate.exam: {call.function} raised {type(error).__name__}: {error}") from error
    if not isinstance(exam, Exam):
        raise UserError(f"evaluate.exam: {call.function} gave a {type(exam).__name__}, not a {Exam.__module__}.Exam")
    return exam


def model_figures(exam: Exam, answers: Sequence[Answer]) -> dict[str, Proportion]:
    """All figures of one model from its answers to all questions."""
    found = {}
    for figure in exam.figures:
        counted = [answer for answer in answers if figure.kind in (None, answer.question.kind)]
        found[figure.name] = proportion(sum(map(figure.counts, counted)), len(counted))
    return found


@dataclass(frozen=True)
class Sitting:
    """Puts an exam to the models of a run: the base model continues the bare question, the others see a chat."""

    exam: Exam
    run: RunFolder
    chat: Chat
    base: PreTrainedTokenizerBase
    sampling: Sampling

    @classmethod
    def of(cls, exam: Exam, recipe: Recipe, run: RunFolder) -> "Sitting":
        """Greedy answers of at most `evaluate.max_tokens`."""
        greedy = Sampling(1, 0.0, recipe.evaluate.max_tokens, recipe.seed)
        base = AutoTokenizer.from_pretrained(run.path("base"))
        return cls(exam, run, Chat.of(run.path("sft")), base, greedy)

    def answers(self, fleet: Fleet, name: str) -> list[Answer]:
        """The answers to every question by the model of that name, whose weights the fleet holds."""
        model, questions = self.run.path(name), self.exam.questions
        if name == "base":
            tokenizer, prompts = self.base, {q.id: self._bare(q.text) for q in questions}
        else:
            tokenizer = self.chat.tokenizer
            prompts = {q.id: self.chat.prompt([{"role": "user", "content": q.text}]) for q in questions}
        drawn = fleet.generate([Prompt(key, ids) for key, ids in prompts.items()], self.sampling)
        return _graded(self.exam, drawn, model, tokenizer)

    def completion(self, fleet: Fleet) -> Proportion | None:
        """How often the weights in the fleet continue a sentence as they should; None without such sentences."""
        asked = self.exam.completions
        if not asked:
            return None
        prompts = [Prompt(name, self._bare(begin)) for name, (begin, _) in asked.items()]
        drawn = fleet.generate(prompts, self.sampling)
        hits = sum(continues_right(wanted, drawn[name][0].text) for name, (_, wanted) in asked.items())
        return proportion(hits, len(asked))

    def _bare(self, text: str) -> list[int]:
        return self.base.encode(text, add_special_tokens=False)


def continues_right(wanted: str, text: str) -> bool:
    """Whether a continuation begins with what is wanted."""
    return text.strip().startswith(wanted.strip())


def answer_of(exam: Exam, question: Question, token_ids: Sequence[int], ends: set[int], tokenizer: Any) -> Answer:
    """The answer up to the first token with which this model ends. The engine stops at the chat's token only; greedy
    decoding to a base model's own end is the same as stopping there."""
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    text = tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True).strip()
    return Answer(question, text, end is not None, exam.right(question, text))


def _graded(
    exam: Exam, drawn: Mapping[str, list[Sample]], model: Path, tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    ends = AutoConfig.from_pretrained(model).eos_token_id
    known = set(ends) if isinstance(ends, list) else {ends}
    return [answer_of(exam, q, drawn[q.id][0].token_ids, known, tokenizer) for q in exam.questions]
