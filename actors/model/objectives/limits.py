"""How far a policy may go: beyond a limit it no longer does what the reward was meant for."""

from collections.abc import Mapping

from cluster.rlhf_recipe import Rlhf


def has_limits(settings: Rlhf) -> bool:
    """Whether the recipe sets a limit."""
    limits = (settings.kl_budget, settings.minimum_entropy, settings.maximum_repetition)
    return any(limit is not None for limit in limits)


def breach(figures: Mapping[str, float], settings: Rlhf) -> str | None:
    """Which limit a policy is beyond, in words.

    The reward model is right near the model whose answers were ranked, and the reward that people would give falls
    again with the distance (Gao et al. 2023); without entropy, samples no longer differ and nothing can be learned.

    Args:
        figures: `kl_sequence` in nats an answer, `entropy` in nats a token and `repetition`, as of the learner's step.
    """
    divergence, entropy, repetition = figures["kl_sequence"], figures["entropy"], figures["repetition"]
    if settings.kl_budget is not None and divergence > settings.kl_budget:
        return (
            f"the policy was {divergence:.2f} nats an answer away from the fine-tuned model, "
            f"and rlhf.kl_budget is {settings.kl_budget:g}"
        )
    if settings.minimum_entropy is not None and entropy < settings.minimum_entropy:
        return (
            f"the policy's entropy was {entropy:.3f} nats a token, and rlhf.minimum_entropy is "
            f"{settings.minimum_entropy:g}"
        )
    if settings.maximum_repetition is not None and repetition > settings.maximum_repetition:
        return (
            f"{repetition:.2f} of the policy's answers had stood in them before, and rlhf.maximum_repetition is "
            f"{settings.maximum_repetition:g}"
        )
    return None
