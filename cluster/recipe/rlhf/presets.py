"""The settings of each policy-gradient algorithm where the recipe leaves them unset, each with its source.

The learning rate is none of them: it depends on the model's size more than on the algorithm.
"""

from dataclasses import dataclass
from typing import Literal

Place = Literal["reward", "loss"]
Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class AlgorithmSettings:
    """An algorithm's penalty, clipping and number of minibatches.

    Attributes:
        kl_coefficient: the weight of the KL divergence from the fine-tuned model; 0: there is none.
        kl_charged_in: whether it is subtracted from the reward or added to the loss.
        kl_estimator: how it is estimated (`actors.algorithms.divergence`).
        minibatches: optimizer steps on the samples of a step.
        clip_range: how far below 1 the ratio of probabilities may fall.
        clip_range_high: how far above 1 it may rise.
        dual_clip: the most times that a ratio counts where the advantage is negative; None for no bound.
        overlong_share: the share of the longest answer over which the penalty of overlong answers rises.
        dynamic_sampling: whether prompts whose answers all got one reward are replaced by others.
    """

    kl_coefficient: float
    kl_charged_in: Place = "loss"
    kl_estimator: Estimator = "k1"
    minibatches: int = 1
    clip_range: float = 0.2
    clip_range_high: float = 0.2
    dual_clip: float | None = None
    overlong_share: float = 0.0
    dynamic_sampling: bool = False


PRESETS: dict[str, AlgorithmSettings] = {
    # Shao et al. 2024 (DeepSeekMath), section 4.2: coefficient 0.04, and "a single update following each exploration
    # stage". Their k3 in the loss has the gradient of another divergence; k1 is used in its place.
    "grpo": AlgorithmSettings(kl_coefficient=0.04),
    # Liu et al. 2025 ("Understanding R1-Zero-like training"), section 3.2: no divergence; their released recipe has
    # 1,024 answers a step and 128 a batch, and clips at 0.2.
    "dr_grpo": AlgorithmSettings(kl_coefficient=0.0, minibatches=8),
    # Yu et al. 2025 (DAPO): no divergence (section 2.3), clip-higher of 0.2 and 0.28 (3.1), dynamic sampling (3.2), a
    # soft penalty over the last 4,096 of 20,480 tokens (3.4), and 16 updates a step (4.1).
    "dapo": AlgorithmSettings(
        kl_coefficient=0.0, minibatches=16, clip_range_high=0.28, overlong_share=0.2, dynamic_sampling=True
    ),
    # Zheng et al. 2025 (GSPO), section 5.1: four minibatches a step, clipped at 3e-4 and 4e-4; their objective (eq. 5)
    # leaves the divergence out.
    "gspo": AlgorithmSettings(kl_coefficient=0.0, minibatches=4, clip_range=3e-4, clip_range_high=4e-4),
    # Ahmadian et al. 2024 ("Back to basics"): the divergence in the reward, 0.03 in their runs on TL;DR; one update.
    "rloo": AlgorithmSettings(kl_coefficient=0.03, kl_charged_in="reward"),
    # Hu et al. 2025 (REINFORCE++): k1 in the reward of each token, or with a baseline k2 in the loss; 0.01 is the
    # default of OpenRLHF, their implementation, whose recipes take one update a step.
    "reinforce++": AlgorithmSettings(kl_coefficient=0.01, kl_charged_in="reward"),
    "reinforce++-baseline": AlgorithmSettings(kl_coefficient=0.01, kl_estimator="k2"),
    # Agarwal et al. 2024 and Lu et al. 2025: the divergence, here from the teacher, is all there is to learn from.
    "distill": AlgorithmSettings(kl_coefficient=1.0, kl_charged_in="reward"),
    # Ouyang et al. 2022 (InstructGPT), appendix C.4: coefficient 0.02 in the reward, clip 0.2, and batches of 512 in
    # minibatches of 64, each seen once. Ye et al. 2020, section 4: dual clip of 3.
    "ppo": AlgorithmSettings(kl_coefficient=0.02, kl_charged_in="reward", minibatches=8, dual_clip=3.0),
}
