"""Asks the models of a run the questions of an exam, and grades their answers.

The grader and the figures are a user's functions: each call has a deadline, and may fail.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.model.chat import Chat
from actors.model.tokenizer import begin_of_text, end_token_ids
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sampling
from cluster.errors import UserError
from cluster.recipe.functions import LateError, call_within, failure_reason
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.data.call_failures import ATTEMPTS, CallFailedError, CallFailures
from pipelines.evaluate.exam import Exam, GradedAnswer, Question
from pipelines.evaluate.stats import Proportion, proportion

SHOWN_CHARACTERS = 80
SHOWN_FAILURES = 10


@dataclass(frozen=True)
class ExamRunner:
    """Runs an exam with the models of a run.

    A base model without a chat template continues the bare text; the others get a chat.

    Attributes:
        exam: the questions.
        run: the folder of the models.
        chat: the fine-tuned model's template.
        base: the base model's tokenizer.
        sampling: how answers are sampled.
        context: the most tokens of a question with its answer.
        function: the name of the function that made the exam, for messages.
        seconds: the most for the grading of one answer.
        max_failed: the largest share of a model's answers that may not be graded.
    """

    exam: Exam
    run: RunFolder
    chat: Chat
    base: PreTrainedTokenizerBase
    sampling: Sampling
    context: int
    function: str
    seconds: float
    max_failed: float

    @classmethod
    def of(cls, exam: Exam, recipe: Recipe, run: RunFolder) -> "ExamRunner":
        """Makes a runner whose models answer greedily with at most `evaluate.max_tokens` tokens."""
        greedy = Sampling(1, 0.0, recipe.evaluate.max_tokens, recipe.seed)
        base = AutoTokenizer.from_pretrained(run.path("base"))
        settings = recipe.evaluate
        return cls(
            exam=exam,
            run=run,
            chat=Chat.of(run.path("sft")),
            base=base,
            sampling=greedy,
            context=recipe.model.context,
            function=settings.exam.function if settings.exam else exam.title,
            seconds=settings.timeout_seconds,
            max_failed=settings.max_failed_gradings,
        )

    def answers(self, fleet: Fleet, name: str) -> list[GradedAnswer]:
        """Samples a model's answers to all questions, and grades them.

        Args:
            fleet: rollout actors that hold the model's weights.
            name: the model: base, sft or policy.

        Raises:
            UserError: a question leaves no room for an answer.
            StageError: the grader failed on too many answers.
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
        grader, ends = Grader(self.exam, self.function, self.seconds, self.max_failed), end_token_ids(model, tokenizer)
        return [grader.grade(q, *cut_answer(samples[q.id][0].token_ids, ends, tokenizer)) for q in questions]

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


class Grader:
    """Grades one model's answers to an exam.

    Args:
        exam: the exam, with its grader and figures.
        name: the name of the function that made the exam, for messages.
        seconds: the most for the grading of one answer.
        limit: the largest share of the questions on which it may fail.
    """

    def __init__(self, exam: Exam, name: str, seconds: float = 60.0, limit: float = 0.0) -> None:
        self._exam, self._name, self._seconds = exam, name, seconds
        self._failures = CallFailures(len(exam.questions), limit, "evaluate.max_failed_gradings", "gradings")

    def grade(self, question: Question, text: str, stopped: bool) -> GradedAnswer:
        """Grades an answer. The exam's figures are tried on it, too, so that they cannot fail later.

        Args:
            question: a question of the exam.
            text: the answer.
            stopped: whether the model ended it itself.

        Returns:
            the graded answer, with a `failure` in words if it could not be graded.

        Raises:
            StageError: grading failed too often.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                graded = call_within(self._seconds, self._judge, question, text, stopped)
            # A user's function may raise anything.
            except Exception as error:  # noqa: BLE001
                late = isinstance(error, LateError)
                if not late and attempt < ATTEMPTS:
                    continue
                shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
                reason = (
                    f"the grader of the exam {self._name} {failure_reason(error)}, for the question {question.id!r} "
                    f"and the answer {shown!r}"
                )
                self._failures.add(CallFailedError(reason, late))
                return GradedAnswer(question, text, stopped, False, reason)
            self._failures.passed()
            return graded
        raise AssertionError("the last attempt returns or raises")

    def _judge(self, question: Question, text: str, stopped: bool) -> GradedAnswer:
        right = self._exam.right(question, text)
        if isawaitable(right):
            raise TypeError("it is a coroutine function, and must be a plain one")
        answer = GradedAnswer(question, text, stopped, bool(right))
        for figure in self._exam.figures:
            if figure.of(question):
                bool(figure.counts(answer))
        return answer


def cut_answer(token_ids: Sequence[int], ends: Collection[int], tokenizer: Any) -> tuple[str, bool]:
    """Returns an answer's text up to its first end token, and whether there is one.

    The engine stops at the chat's end token alone; with greedy decoding, cutting a base model's answer at its own end
    token is the same as stopping there.

    Args:
        token_ids: the generated tokens.
        ends: the model's end tokens.
        tokenizer: the model's.
    """
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    return tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True).strip(), end is not None


def graded_for_all(answers: Mapping[str, Sequence[GradedAnswer]]) -> dict[str, list[GradedAnswer]]:
    """Leaves out the questions on which grading failed for a model, so that all models have the same questions.

    Args:
        answers: the answers by the model's name, in the order of the questions.
    """
    whole = [not any(answer.failure for answer in group) for group in zip(*answers.values(), strict=True)]
    return {
        name: [answer for answer, kept in zip(given, whole, strict=True) if kept] for name, given in answers.items()
    }


def grading_failures(answers: Mapping[str, Sequence[GradedAnswer]]) -> dict[str, Any]:
    """Counts the answers that could not be graded, by model, and quotes the reasons of the first few."""
    failed = {name: [answer.failure for answer in given if answer.failure] for name, given in answers.items()}
    reasons = [reason for found in failed.values() for reason in found]
    return {
        "failed_gradings": {name: len(found) for name, found in failed.items()},
        "grading_failures": reasons[:SHOWN_FAILURES],
    }
