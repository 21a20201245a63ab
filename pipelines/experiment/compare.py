"""Compares small models of two variants: the difference of their losses, with an interval."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Comparison:
    """Bits a byte of a variant beside those of the baseline.

    Attributes:
        bits: the bits of the variant, the mean over models.
        change: variant minus baseline; below 0 the variant is better.
        low: lower end of the change's interval.
        high: its upper end.
        verdict: better or worse if the interval does not contain 0.
    """

    bits: float
    change: float
    low: float
    high: float
    verdict: Verdict


def compare(baseline: NDArray[np.float64], variant: NDArray[np.float64], sizes: NDArray, variants: int) -> Comparison:
    """Computes the change of the bits a byte, over models and documents, which are both samples.

    The variance is the sum of that over models and that over documents, which for two crossed samples is right or too
    large (Owen and Eckles 2012, https://arxiv.org/abs/1106.2125), with Satterthwaite's degrees of freedom. With 95 %
    the intervals of all variants hold together (Bonferroni).

    Args:
        baseline: bits of each document under each model, (models, documents), n-th model with the n-th seed.
        variant: the bits of the same documents under the variant's models, with the same seeds.
        sizes: bytes of each document.
        variants: number of comparisons with the baseline.
    """
    changes = (variant - baseline) / sizes.sum()
    change = float(changes.sum(axis=1).mean())
    by_model, by_document = changes.sum(axis=1), changes.mean(axis=0)
    models, documents = changes.shape
    terms = [
        (float(by_model.var(ddof=1)) / models, models - 1),
        # The variance over documents whose sizes vary, from the residuals of a ratio (Cochran 1977, section 2.11).
        (float((by_document - change * sizes / sizes.sum()).var(ddof=1)) * documents, documents - 1),
    ]
    variance = sum(value for value, _ in terms)
    weights = sum(value**2 / freedom for value, freedom in terms)
    freedom = variance**2 / weights if weights else 1.0
    half = float(stdtrit(freedom, 1 - 0.025 / variants)) * math.sqrt(variance)
    low, high = change - half, change + half
    verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "not told apart"
    return Comparison(float(variant.sum(axis=1).mean() / sizes.sum()), change, low, high, verdict)
