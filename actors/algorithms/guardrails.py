"""Limits on how far a policy may go: beyond them a higher reward no longer means better answers."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cluster.recipe.rlhf.section import Rlhf


@dataclass(frozen=True)
class _Limit:
    """A setting of the recipe, the metric that it limits, and the message when the metric is beyond the limit."""

    setting: str
    metric: str
    beyond: Callable[[float, float], bool]
    message: str


LIMITS = (
    _Limit("max_kl", "kl_sequence", operator.gt, "the policy's sequence KL from the fine-tuned model was {:.2f} nats"),
    _Limit("min_entropy", "entropy", operator.lt, "the policy's entropy was {:.3f} nats a token"),
    _Limit(
        "max_repetition",
        "repetition",
        operator.gt,
        "{:.2f} of the runs of three tokens in the policy's answers were repetitions",
    ),
    _Limit(
        "max_length_change",
        "length_change",
        lambda times, most: times > most or times * most < 1,
        "the policy's answers were {:.2f} times as long as the fine-tuned model's",
    ),
    _Limit(
        "overoptimization",
        "overoptimization",
        operator.gt,
        "the tokens of the policy's answers had diverged by {:.2f} bits from those of the fine-tuned model's",
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
    """Says whether the recipe sets a limit."""
    return any(True for _ in _set(settings))


def breach(metrics: Mapping[str, float], settings: Rlhf) -> str | None:
    """Returns a message about the first limit that a policy is beyond, or None. Metrics not measured are passed over.

    The reward model is right near the model whose answers were ranked, and the reward that people would give falls
    again with the distance (Gao et al. 2023); without entropy, samples no longer differ and nothing can be learned;
    length is what rewards are most often won by (Singhal et al. 2023).

    Args:
        metrics: `kl_sequence`, the sequence KL in nats; `entropy` in nats a token; `repetition`, `length_change` and
            `overoptimization` of the learner's step; and `preference_accuracy_high`, the upper end of the interval.
    """
    for limit, value in _set(settings):
        found = metrics.get(limit.metric)
        if found is not None and limit.beyond(found, value):
            return f"{limit.message.format(found)}, and rlhf.stop.{limit.setting} is {value:g}"
    return None


def is_within(metrics: Mapping[str, float], settings: Rlhf) -> bool:
    """Says whether every metric that the recipe limits has been measured and is within its limit."""
    return all(limit.metric in metrics for limit, _ in _set(settings)) and breach(metrics, settings) is None


def _set(settings: Rlhf) -> Iterator[tuple[_Limit, float]]:
    values = settings.stop.limits
    return ((limit, values[limit.setting]) for limit in LIMITS if limit.setting in values)
