"""Dropout, and whatever else a model draws at random while it is trained, such as the noise of a router of experts.

Where log-probabilities or rewards of the same model are compared, they must not differ by chance: RLHF, DPO and the
reward model train without it, as InstructGPT (Ouyang et al. 2022, appendix C) and TRL do. Pre-training and fine-tuning
train with what the model's configuration says.
"""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer


def without_dropout(model: Any) -> None:
    """Switches dropout off, as when the model is served, and keeps gradients on.

    Layers that recompute their activations do so in training mode alone. They stay in it, and the modules in them,
    which draw, do not.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = module.gradient_checkpointing
