"""How far a policy may go: beyond a limit it no longer does what the reward was meant for."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cluster.recipe.rlhf import Rlhf


@dataclass(frozen=True)
class _Limit:
    """A setting of the recipe, the figure that it limits, and what is said when it is beyond."""

    setting: str
    figure: str
    beyond: Callable[[float, float], bool]
    said: str


LIMITS = (
    _Limit("max_kl", "kl_sequence", operator.gt, "the policy was {:.2f} nats an answer away from the fine-tuned model"),
    _Limit("min_entropy", "entropy", operator.lt, "the policy's entropy was {:.3f} nats a token"),
    _Limit("max_repetition", "repetition", operator.gt, "{:.2f} of the policy's answers had stood in them before"),
    _Limit(
        "max_length_change",
        "length_change",
        lambda times, most: times > most or times * most < 1,
        "the policy's answers were {:.2f} times as long as the fine-tuned model's",
    ),
    # The end of the interval: a few pairs must not end a run by chance.
    _Limit(
        "min_preference_accuracy",
        "preference_accuracy_high",
        operator.lt,
        "of two held-out answers the policy moved towards the one ranked better in {:.2f} of pairs at most",
    ),
)


def has_limits(settings: Rlhf) -> bool:
    """Whether the recipe sets a limit."""
    return any(True for _ in _set(settings))


def breach(figures: Mapping[str, float], settings: Rlhf) -> str | None:
    """Which limit a policy is beyond, in words. What has not been measured is beyond none.

    The reward model is right near the model whose answers were ranked, and the reward that people would give falls
    again with the distance (Gao et al. 2023); without entropy, samples no longer differ and nothing can be learned;
    length is what rewards are most often won by (Singhal et al. 2023).

    Args:
        figures: `kl_sequence` in nats an answer, `entropy` in nats a token, `repetition` and `length_change` as of the
            learner's step, and `preference_accuracy_high`, the upper end of the interval.
    """
    for limit, value in _set(settings):
        found = figures.get(limit.figure)
        if found is not None and limit.beyond(found, value):
            return f"{limit.said.format(found)}, and rlhf.stop.{limit.setting} is {value:g}"
    return None


def is_within(figures: Mapping[str, float], settings: Rlhf) -> bool:
    """Whether all that the recipe limits has been measured and is within."""
    return all(limit.figure in figures for limit, _ in _set(settings)) and breach(figures, settings) is None


def _set(settings: Rlhf) -> Iterator[tuple[_Limit, float]]:
    values = settings.stop.limits
    return ((limit, values[limit.setting]) for limit in LIMITS if limit.setting in values)
