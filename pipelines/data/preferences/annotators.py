"""Synthetic annotators: functions that rank answers in place of people, which a recipe names as module:function."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

from cluster.errors import StageError, UserError
from cluster.feedback import CODE
from cluster.recipe.base import Call
from cluster.recipe.functions import (
    CoroutineCaller,
    LateError,
    call_within,
    failure_reason,
    in_order,
    is_coroutine_function,
    load_function,
)
from pipelines.data.call_failures import ATTEMPTS, CallFailedError, CallFailures

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer as an annotator sees it; `finished`: the model ended it, and not the length limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class GradedRanking:
    """A ranking of K answers to one prompt, with the grades behind it.

    Attributes:
        ranks: [K], 1 is best, equal ranks are ties.
        grades: [K], larger is better: the annotator's judgment without its noise; None if it has no noise.
    """

    ranks: Sequence[int]
    grades: Sequence[int] | None = None


class _WrongResult(Exception):
    """An annotator's result that is no ranking."""


# The signature of the recipe's function: (prompt, answers, chance, **arguments) -> ranks, or a GradedRanking. `prompt`
# holds the fields of the prompt's row; `chance` is the only source of randomness to use, so that rankings can be
# repeated. It may be a coroutine function.
Annotator = Callable[[Mapping[str, Any], Sequence[JudgedAnswer], random.Random], GradedRanking | Sequence[int]]


@dataclass(frozen=True)
class SyntheticAnnotator:
    """A function that ranks.

    Attributes:
        name: the name under which its rankings are stored, which marks them as not a person's.
        function: ranks.
        seconds: the most for one call.
        at_once: how many prompts it judges side by side.
        coroutines: awaits its calls if it is a coroutine function; None if it is a plain one.
    """

    name: str
    function: Annotator
    seconds: float = 60.0
    at_once: int = 1
    coroutines: CoroutineCaller | None = None

    @classmethod
    def of(cls, call: Call, seconds: float = 60.0, at_once: int = 1) -> "SyntheticAnnotator":
        """Loads the annotator that a recipe names; the other arguments are the attributes.

        Raises:
            UserError: the function cannot be loaded.
        """
        arguments = "".join(f" {name}={value}" for name, value in sorted(call.arguments.items()))
        found = load_function(call.function, "annotator")
        function = partial(found, **call.arguments)
        coroutines = CoroutineCaller(function) if is_coroutine_function(found) else None
        return cls(f"{CODE}{call.function}{arguments})", function, seconds, at_once, coroutines)

    def each(self, judge: Callable[[T], R], items: Iterable[T]) -> Iterator[R | CallFailedError]:
        """Calls `judge`, which asks this annotator, for `at_once` items side by side, and yields what it returns, or
        its failure, in the order of the items."""

        def judged(item: T) -> R | CallFailedError:
            try:
                return judge(item)
            except CallFailedError as error:
                return error

        return in_order(judged, items, self.at_once)

    def check(self, prompts: Mapping[str, Mapping[str, Any]], max_failed: float = 0.0) -> None:
        """Tries the function on two empty answers to every prompt.

        Args:
            prompts: the fields of each prompt, by its name.
            max_failed: the largest share of prompts that it may fail on.

        Raises:
            UserError: it fails on a larger share.
        """
        empty = [JudgedAnswer("", False), JudgedAnswer("", True)]
        failures = annotator_failures(len(prompts), max_failed)
        for found in self.each(lambda name: self.judge(name, prompts[name], empty, "check"), prompts):
            if not isinstance(found, CallFailedError):
                failures.passed()
                continue
            try:
                failures.add(found)
            except StageError as limit:
                raise UserError(
                    f"{limit}; choose other prompts, another annotator, or collect.annotator=people"
                ) from found

    def judge(self, name: str, prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], seed: str) -> GradedRanking:
        """Ranks answers to one prompt. A function that fails is tried `ATTEMPTS` times, with the same randomness.

        Args:
            name: the name of the prompt, for messages.
            prompt: its fields.
            answers: K answers.
            seed: the seed of the source of randomness.

        Raises:
            CallFailedError: each time the function raised, or did not return a rank of at least 1 for every answer; or
                it took too long.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _checked(self._called(prompt, answers, random.Random(seed)), len(answers))
            # A user's function may raise anything.
            except Exception as error:
                late = isinstance(error, LateError)
                if late or attempt == ATTEMPTS:
                    words = str(error) if isinstance(error, _WrongResult) else f"it {failure_reason(error)}"
                    own = self.name.removeprefix(CODE).removesuffix(")")
                    raise CallFailedError(
                        f"the annotator {own} cannot judge the prompt {name[:80]!r}: {words}", late
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _called(self, *arguments: Any) -> Any:
        if self.coroutines:
            return self.coroutines.call(self.seconds, *arguments)
        return call_within(self.seconds, self.function, *arguments)


def annotator_failures(prompts: int, limit: float) -> CallFailures:
    """Counts the prompts that a synthetic annotator failed on, and raises above a share of them."""
    return CallFailures(prompts, limit, "collect.max_failed_rankings", "prompts")


def _checked(result: Any, answers: int) -> GradedRanking:
    """Converts the result of a function; integers of any type count, such as those of NumPy.

    Raises:
        _WrongResult: it is no ranking of so many answers.
    """
    ranking = result if isinstance(result, GradedRanking) else GradedRanking(result)
    for values in (ranking.ranks, *([ranking.grades] if ranking.grades is not None else [])):
        integers = isinstance(values, Iterable) and all(isinstance(value, Integral) for value in values)
        if not integers or len(values) != answers:
            raise _WrongResult(f"it returned {values!r} for {answers} answers; it must return an integer for each")
    ranks = [int(rank) for rank in ranking.ranks]
    if min(ranks) < 1:
        raise _WrongResult(f"it returned the ranks {ranks}; ranks start at 1, the best")
    return GradedRanking(ranks, None if ranking.grades is None else [int(grade) for grade in ranking.grades])


def rank_by_kind(
    prompt: Mapping[str, Any],
    answers: Sequence[JudgedAnswer],
    chance: random.Random,
    noise: float,
    grade: Callable[[Any, str, str, bool], int],
    whose: str,
) -> GradedRanking:
    """Ranks answers by their grades, as a rule of code gives them by the prompt's kind.

    Args:
        prompt: a row with `kind` and `key`.
        answers: K answers.
        chance: the source of randomness.
        noise: probability of each swap of neighboring ranks.
        grade: (kind, key, text, finished) -> grade, larger is better.
        whose: the prompts that have both, for the error's message.

    Raises:
        ValueError: the prompt has no kind and key.
    """
    if not {"kind", "key"} <= prompt.keys():
        raise ValueError(f"it judges only {whose} prompts, which have a kind and a key")
    grades = [grade(prompt["kind"], prompt["key"], answer.text, answer.finished) for answer in answers]
    return GradedRanking(rank(grades, noise, chance), grades)


def rank(grades: Sequence[int], noise: float, chance: random.Random) -> list[int]:
    """Converts grades to ranks, 1 for the best and ties for equal grades; neighboring ranks swap with probability
    `noise`.
    """
    levels = sorted(set(grades), reverse=True)
    order = list(range(len(levels)))
    for position in range(len(levels) - 1):
        if chance.random() < noise:
            order[position], order[position + 1] = order[position + 1], order[position]
    return [1 + order[levels.index(value)] for value in grades]
