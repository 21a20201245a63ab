"""Synthetic annotators: functions that rank answers in people's place, named in the recipe as module:function."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.rewards.function import load_function
from cluster.errors import StageError, UserError
from cluster.feedback import CODE
from cluster.recipe.base import Call


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer as an annotator sees it; `finished`: it ended by itself and was not cut at the length limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class GradedRanking:
    """A synthetic annotator's judgement of K answers to one prompt.

    Attributes:
        ranks: [K], 1 is best, equal ranks tie.
        grades: [K], larger is better: what it would say without its noise, where it has some.
    """

    ranks: Sequence[int]
    grades: Sequence[int] | None = None


# What the recipe names: function(prompt, answers, chance, **arguments). `prompt` holds the fields that the source knows
# of it; `chance` is the only randomness that it may use, so that the same recipe ranks the same way.
Annotator = Callable[[Mapping[str, Any], Sequence[JudgedAnswer], random.Random], GradedRanking | Sequence[int]]


@dataclass(frozen=True)
class SyntheticAnnotator:
    """A function that ranks, with the name under which its rankings are kept: it says that no person gave them."""

    name: str
    function: Annotator

    @classmethod
    def of(cls, call: Call) -> "SyntheticAnnotator":
        """Loads the function that a recipe names.

        Raises:
            UserError: there is no such function.
        """
        arguments = "".join(f" {name}={value}" for name, value in sorted(call.arguments.items()))
        function = partial(load_function(call.function, "annotator"), **call.arguments)
        return cls(f"{CODE}{call.function}{arguments})", function)

    def check(self, prompts: Mapping[str, Mapping[str, Any]]) -> None:
        """Tries the function on two empty answers to every prompt.

        Raises:
            UserError: it cannot judge one of them.
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

        Raises:
            StageError: the function raised, or did not give a rank from 1 on for every answer.
        """
        where = f"the annotator {self.name.removeprefix(CODE).removesuffix(')')} cannot judge the prompt {name[:80]!r}"
        try:
            found = self.function(prompt, answers, chance)
        # The function is the user's own, and may fail in any way.
        except Exception as error:
            raise StageError(f"{where}: it raised {type(error).__name__}: {error}") from error
        judgement = found if isinstance(found, GradedRanking) else GradedRanking(found)
        for given in (judgement.ranks, *([judgement.grades] if judgement.grades is not None else [])):
            if len(given) != len(answers) or not all(isinstance(value, int) for value in given):
                raise StageError(
                    f"{where}: it gave {given!r} for {len(answers)} answers; a whole number for each is needed"
                )
        if min(judgement.ranks) < 1:
            raise StageError(f"{where}: ranks start at 1, the best, and it gave {list(judgement.ranks)}")
        return judgement
