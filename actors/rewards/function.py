"""Rewards by Python functions of a prompt and an answer, for tasks whose answers can be verified."""

from collections.abc import Sequence
from itertools import islice

from actors.functions.caller import CallLimits, FunctionCaller
from actors.types import Prompt, RewardInput, Sample, Scores

SHOWN_CHARACTERS = 80


class FunctionReward:
    """Calls a function for every answer, side by side in processes of its own.

    Args:
        name: module:function; it takes a `RewardInput` and the answer's text, and returns a number. It may be a
            coroutine function.
        limits: deadline, attempts and processes of the calls.

    Raises:
        UserError: the function cannot be imported.
    """

    def __init__(self, name: str, limits: CallLimits) -> None:
        self._caller = FunctionCaller(name, "reward function", limits)

    def close(self) -> None:
        """Ends the function's processes."""
        self._caller.close()

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], inputs: Sequence[RewardInput]
    ) -> Scores:
        """Returns the verdicts of the samples of each prompt.

        One is a `Failure`, which names function, prompt and answer, if every attempt raised, took too long, ended its
        process or returned something else than a finite number.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            inputs: what the function sees of each.

        Raises:
            StageError: the function could be imported before and no longer can.
        """
        asked = [
            (prompt, own, sample)
            for prompt, group, own in zip(prompts, groups, inputs, strict=True)
            for sample in group
        ]
        calls = [
            {
                "messages": [*own.messages, *sample.history],
                "metadata": dict(own.metadata),
                "answer": sample.text,
                "raw_answer": sample.raw_text,
            }
            for _, own, sample in asked
        ]

        def where(index: int) -> str:
            prompt, _, sample = asked[index]
            return f"for prompt {prompt.name!r} and answer {shown(sample.text)}"

        verdicts = iter(self._caller.call_all(calls, where))
        return [list(islice(verdicts, len(group))) for group in groups]


def shown(answer: str) -> str:
    """Returns an answer in quotes for a message, of a long one the beginning."""
    return repr(answer if len(answer) <= SHOWN_CHARACTERS else f"{answer[:SHOWN_CHARACTERS]}…")
