"""Signs of over-optimization in the samples of a step, from token ids and rewards alone.

A policy that exploits a reward model drifts from the fine-tuned model's answers, mostly towards features that are cheap
to write and rewarded: length (Singhal et al. 2023), repetition, a fixed opening, one token.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from actors.types import Sample

# The first tokens of an answer that count as its opening.
OPENING = 3
# The most frequent tokens, whose frequencies are compared; all others count as one. Two batches of 128 answers of 42
# words, to different prompts, by one model, have a divergence of 0.30 bits over all words, and of 0.07 over these.
FREQUENT = 128
# Tokens and openings of fewer of the start's answers count as new.
LEAST_SHARE = 0.01
OTHERS = "others"

Groups = Sequence[Sequence[Sample]]
# [P][K], of the samples of each prompt.
Values = Sequence[Sequence[float]]


@dataclass(frozen=True)
class StartSamples:
    """Statistics of the fine-tuned model's answers, those of the first step, to compare later ones with; JSON.

    Attributes:
        frequency: by token id, the share of all tokens, of the most frequent ones.
        holding: by token id, the share of answers that contain it.
        openings: by the first tokens of an answer, joined with commas, the share of answers that begin so.
    """

    frequency: dict[str, float]
    holding: dict[str, float]
    openings: dict[str, float]

    @classmethod
    def of(cls, groups: Groups) -> "StartSamples":
        """Counts tokens and openings in the samples of each prompt."""
        answers = [_drawn(sample) for sample in chain(*groups)]
        frequent = Counter(chain.from_iterable(answers)).most_common(FREQUENT)
        total = max(1, sum(map(len, answers)))
        holding, openings = _shares(map(set, answers)), _shares([_opening(answer)] for answer in answers)
        return cls(
            {str(token): count / total for token, count in frequent},
            {token: share for token, share in holding.items() if share >= LEAST_SHARE},
            {opening: share for opening, share in openings.items() if share >= LEAST_SHARE},
        )


def sample_signs(groups: Groups, rewards: Values, start: StartSamples) -> dict[str, float]:
    """Computes the signs of one step; correlations are within prompts.

    Args:
        groups: the samples of P prompts.
        rewards: [P][K], their rewards.
        start: of the fine-tuned model.

    Returns:
        `token_divergence`: Jensen-Shannon divergence, in bits, of the frequencies of the start's frequent tokens and of
        all others together; 0 to 1.
        `token_rise`, `opening_rise`: the largest rise since the start of the share of answers that contain one token,
        or that begin with the same `OPENING` tokens.
        `token_correlation`, `opening_correlation`, `repetition_correlation`: of the reward with that token, with that
        opening, and with the share of repeated 3-token runs.
        `cheap_explained`: the share of the reward's variance within prompts that length, repetition, that opening and
        that token explain, as `explained_variance`.
    """
    answers = [_drawn(sample) for sample in chain(*groups)]
    token, token_rise = _largest_rise(_shares(map(set, answers)), start.holding)
    opening, opening_rise = _largest_rise(_shares([_opening(answer)] for answer in answers), start.openings)
    features = {
        "length": [float(len(answer)) for answer in answers],
        "repetition": [sample.repetition for sample in chain(*groups)],
        "opening": [float(_opening(answer) == opening) for answer in answers],
        "token": [float(int(token) in answer) for answer in answers],
    }
    grouped = {name: _split(values, [len(group) for group in groups]) for name, values in features.items()}
    tokens = Counter(str(token) if str(token) in start.frequency else OTHERS for token in chain.from_iterable(answers))
    now = {name: count / max(1, tokens.total()) for name, count in tokens.items()}
    before = {**start.frequency, OTHERS: max(0.0, 1 - sum(start.frequency.values()))}
    return {
        "token_divergence": jensen_shannon(now, before),
        "token_rise": token_rise,
        "opening_rise": opening_rise,
        **{
            f"{name}_correlation": within_prompt_correlation(grouped[name], rewards)
            for name in ("token", "opening", "repetition")
        },
        "cheap_explained": explained_variance(list(grouped.values()), rewards),
    }


def within_prompt_correlation(values: Values, rewards: Values) -> float:
    """Computes Pearson's correlation of two values of samples [P][K], of their deviations from the prompt's means.

    It is 0 where one of the two does not vary.
    """
    first, second = _deviations(values), _deviations(rewards)
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def explained_variance(features: Sequence[Values], rewards: Values) -> float:
    """Computes the adjusted R² of rewards on features by least squares, after subtracting the prompt's means.

    Args:
        features: F features of the samples, [P][K] each.
        rewards: [P][K].

    Returns:
        At least 0; 0 where rewards do not vary or there are too few samples.
    """
    target = _deviations(rewards)
    table = np.stack([_deviations(feature) for feature in features], axis=1)
    table = table[:, (table**2).sum(0) > 0]
    whole = float((target**2).sum())
    freedom = len(target) - len(rewards)
    if not whole or not table.shape[1] or freedom <= table.shape[1]:
        return 0.0
    left = target - table @ np.linalg.lstsq(table, target, rcond=None)[0]
    share = float((left**2).sum()) / whole
    return max(0.0, 1 - share * freedom / (freedom - table.shape[1]))


def jensen_shannon(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Computes the Jensen-Shannon divergence of two distributions in bits: 0 if they are equal, 1 if disjoint."""
    names = first.keys() | second.keys()
    p, q = (np.array([part.get(name, 0.0) for name in names]) for part in (first, second))
    middle = (p + q) / 2
    return sum(float((part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum()) for part in (p, q)) / 2


def _drawn(sample: Sample) -> list[int]:
    return [token for token, own in zip(sample.token_ids, sample.loss_mask, strict=True) if own]


def _opening(answer: Sequence[int]) -> str:
    return ",".join(map(str, answer[:OPENING]))


def _shares(found: Iterable[Iterable[object]]) -> dict[str, float]:
    """Computes the share of answers in which each thing is found."""
    rows = [list(row) for row in found]
    return {str(name): count / len(rows) for name, count in Counter(chain.from_iterable(rows)).items()}


def _largest_rise(now: Mapping[str, float], start: Mapping[str, float]) -> tuple[str, float]:
    if not now:
        return "-1", 0.0
    name = max(now, key=lambda one: (now[one] - start.get(one, 0.0), one))
    return name, max(0.0, now[name] - start.get(name, 0.0))


def _split(values: Sequence[float], sizes: Sequence[int]) -> list[list[float]]:
    found = iter(values)
    return [[next(found) for _ in range(size)] for size in sizes]


def _deviations(values: Values) -> np.ndarray:
    return np.concatenate([np.array(own, float) - np.mean(own) for own in values])
