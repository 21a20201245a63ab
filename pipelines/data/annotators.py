"""Synthetic annotators: functions that rank answers in place of people, which a recipe names as module:function."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.errors import StageError, UserError
from cluster.feedback import CODE
from cluster.recipe.base import Call
from cluster.recipe.functions import load_function


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


# The signature of the recipe's function: (prompt, answers, chance, **arguments) -> ranks, or a GradedRanking. `prompt`
# holds the fields of the prompt's row; `chance` is the only source of randomness to use, so that rankings can be
# repeated.
Annotator = Callable[[Mapping[str, Any], Sequence[JudgedAnswer], random.Random], GradedRanking | Sequence[int]]


@dataclass(frozen=True)
class SyntheticAnnotator:
    """A function that ranks, with the name that its rankings are stored under, which marks them as not a person's."""

    name: str
    function: Annotator

    @classmethod
    def of(cls, call: Call) -> "SyntheticAnnotator":
        """Loads the annotator that a recipe names.

        Raises:
            UserError: the function cannot be loaded.
        """
        arguments = "".join(f" {name}={value}" for name, value in sorted(call.arguments.items()))
        function = partial(load_function(call.function, "annotator"), **call.arguments)
        return cls(f"{CODE}{call.function}{arguments})", function)

    def check(self, prompts: Mapping[str, Mapping[str, Any]]) -> None:
        """Tries the function on two empty answers to every prompt.

        Args:
            prompts: the fields of each prompt, by its name.

        Raises:
            UserError: it fails on one.
        """
        empty = [JudgedAnswer("", False), JudgedAnswer("", True)]
        for name, prompt in prompts.items():
            try:
                self.judge(name, prompt, empty, random.Random(0))
            except StageError as error:
                raise UserError(
                    f"{error}; choose other prompts, another annotator, or collect.annotator=people"
                ) from error

    def judge(
        self, name: str, prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random
    ) -> GradedRanking:
        """Ranks answers to one prompt.

        Args:
            name: of the prompt, for messages.
            prompt: its fields.
            answers: K answers.
            chance: the source of randomness.

        Raises:
            StageError: the function raised, or did not return a rank of at least 1 for every answer.
        """
        where = f"the annotator {self.name.removeprefix(CODE).removesuffix(')')} cannot judge the prompt {name[:80]!r}"
        try:
            result = self.function(prompt, answers, chance)
        # A user's function may raise anything.
        except Exception as error:
            raise StageError(f"{where}: it raised {type(error).__name__}: {error}") from error
        ranking = result if isinstance(result, GradedRanking) else GradedRanking(result)
        for values in (ranking.ranks, *([ranking.grades] if ranking.grades is not None else [])):
            if len(values) != len(answers) or not all(isinstance(value, int) for value in values):
                raise StageError(
                    f"{where}: it returned {values!r} for {len(answers)} answers; it must return an integer for each"
                )
        if min(ranking.ranks) < 1:
            raise StageError(f"{where}: it returned the ranks {list(ranking.ranks)}; ranks start at 1, the best")
        return ranking
