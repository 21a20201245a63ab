"""Follows the signs of over-optimization over the steps of an RLHF run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from actors.overoptimization.signs import Groups, StartSamples, Values, sample_signs

# Steps over which the divergence of `rlhf.stop.overoptimization` is averaged: one step's is noisy.
WINDOW = 3


class OveroptimizationTracker:
    """Compares the samples of each step with those of the first, which the fine-tuned model drew.

    As an alarm the averaged divergence is no default: on settings other than those that its limit was fit on, it found
    8 of 14 falls of the true reward, 4 of them in time, and was wrong in 4 of 34 runs
    (`python -m infra.bench.overoptimization`).
    """

    def __init__(self) -> None:
        self._start: StartSamples | None = None
        self._last: list[float] = []

    def measure(self, groups: Groups, rewards: Values, first: bool) -> dict[str, float]:
        """Computes the metrics of a step: `sample_signs`, and `overoptimization`, the averaged token divergence.

        Args:
            groups: the samples of P prompts.
            rewards: [P][K].
            first: whether the fine-tuned model drew them.

        Returns:
            Nothing where the first samples are not known, as after a checkpoint of an earlier version.
        """
        if first:
            self._start, self._last = StartSamples.of(groups), []
        if self._start is None:
            return {}
        signs = sample_signs(groups, rewards, self._start)
        self._last = [*self._last, signs["token_divergence"]][-WINDOW:]
        return {**signs, "overoptimization": sum(self._last) / len(self._last)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as JSON."""
        return {"start": self._start and asdict(self._start), "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restores the state that `state_dict` returned; None where the checkpoint has none."""
        self._start = StartSamples(**state["start"]) if state and state["start"] else None
        self._last = list(state["last"]) if state else []
