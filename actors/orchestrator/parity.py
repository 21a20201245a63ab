"""Checks that engine and learner are the same model: both must give the same tokens the same log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actors.orchestrator.coordination.protocols import LearnerProtocol
from actors.orchestrator.fleet import Fleet
from actors.rollout.weights import mismatch
from actors.types import Prompt, Sample, Sampling
from cluster.errors import StageError, wait_for
from cluster.recipe.base import Precision

# Beyond this they are not the same model. In float32, of the worst token: measured gap 1e-6. In bfloat16, which rounds
# to three digits in every layer, of the average token: measured gap 0.003 with 2.5M parameters and 0.034 with 135M,
# while the worst of some hundred tokens were off by 0.08 and 0.43.
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
# Rounding is about as large at the last tokens of an answer as at the first (1.4 times, measured on a model of 2.5M
# parameters); the error of a slightly wrong rotation of positions grows with the distance between tokens (4.3 times).
MAX_GROWTH = 3.0


@dataclass(frozen=True)
class ParityLogprobs:
    """Log-probabilities of the tokens of some answers, [answers][tokens], by the engine and by the learner."""

    engine: list[list[float]]
    learner: list[list[float]]

    @property
    def gaps(self) -> list[np.ndarray]:
        """The absolute differences between the two."""
        return [np.abs(np.subtract(*rows)) for rows in zip(self.engine, self.learner, strict=True)]


def check_parity(
    fleet: Fleet,
    learner: LearnerProtocol,
    precision: Precision,
    prompts: Sequence[Prompt],
    max_tokens: int,
    deadline: float,
) -> float:
    """Compares engine and learner on one answer to each prompt. The draws of training are not affected.

    Args:
        precision: of the learner's matrix products.
        max_tokens: of an answer.
        deadline: the most seconds for the engines' checksums, if they are needed.

    Returns:
        The gap, in nats, as LIMITS describes it for the coarser precision of the two.

    Raises:
        StageError: they are not the same model, so that every importance ratio would be wrong; the message says which
            layer of the set-up differs.
    """
    fleet.wait_synced()
    # Under names of their own, so that an environment does not continue the answers.
    renamed = [Prompt(f"parity:{prompt.id}", prompt.token_ids, f"parity:{prompt.name}") for prompt in prompts]
    groups = fleet.generate(renamed, Sampling(1, 1.0, max_tokens, seed=0))
    samples = [groups[prompt.id][0] for prompt in renamed]
    scores = ParityLogprobs([sample.logprobs for sample in samples], _scores_by_learner(learner, renamed, samples))
    coarser = "float32" if fleet.precision == precision == "float32" else "bfloat16"
    gap, limit = gap_of(scores.gaps, coarser), LIMITS[coarser]
    if gap > limit:
        raise StageError(
            f"rollout engine and learner differ by {gap:.1e} in log-probability (limit {limit:.0e}): "
            f"{_differing_layer(fleet, learner.weights(), scores, deadline)}"
        )
    return gap


def gap_of(gaps: Sequence[np.ndarray], precision: str) -> float:
    """Returns the figure that a precision's limit is for: the largest gap in float32, the mean in bfloat16."""
    together = np.concatenate(gaps)
    return float(together.max() if precision == "float32" else together.mean())


def growth(gaps: Sequence[np.ndarray]) -> float:
    """Returns the mean gap in the last quarters of the answers over that in the first; 1 if answers are too short."""
    quarters = [(row[: len(row) // 4], row[-(len(row) // 4) :]) for row in gaps if len(row) >= 4]
    if not quarters:
        return 1.0
    first, last = (float(np.concatenate(part).mean()) for part in zip(*quarters, strict=True))
    return last / max(first, 1e-12)


def _scores_by_learner(
    learner: LearnerProtocol, prompts: Sequence[Prompt], samples: Sequence[Sample]
) -> list[list[float]]:
    sequences = [prompt.token_ids + sample.token_ids for prompt, sample in zip(prompts, samples, strict=True)]
    return learner.logprobs(sequences, [len(prompt.token_ids) for prompt in prompts], 1.0)


def _differing_layer(fleet: Fleet, weights: dict[str, Tensor], scores: ParityLogprobs, deadline: float) -> str:
    """Names the cause of a difference: the weights by their digests, else the learner's element type, which is to be
    float32, else the cause that the shape of the gaps points to."""
    expected = fleet.digests(weights)
    found = wait_for([handle.checksums.remote() for handle in fleet.handles()], deadline, "the engines' checksums")
    differing = next((names for one in found if (names := mismatch(expected, one)) is not None), None)
    if differing is not None:
        return f"the weights differ in {differing}"
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    if types != {"float32"}:
        return f"the weights are the same; the engine computes in {fleet.precision} and the learner holds {min(types)}"
    if growth(scores.gaps) > MAX_GROWTH:
        return "the weights are the same and the gap grows along an answer: positions are not counted in the same way"
    return (
        "weights and precision are the same and the gap does not grow along an answer: the layers compute otherwise, "
        "or positions are far off"
    )
