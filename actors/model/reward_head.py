"""Models whose output is one number: the reward of a conversation, or the value of every token."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

from actors.model.parts import trunk
from actors.model.sharding.weights import empty_model, is_shared, make_real
from cluster.errors import UserError, first_line

# The names of the folders of an ensemble's members, but the first, before their number.
MEMBER_PREFIX = "member-"


def require_reward_head(config: Any, name: str | None) -> None:
    """Raises a UserError if transformers has no sequence classifier for a language model's kind."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"{name}: a model of the kind {config.model_type} cannot be made a reward model: start from one of another "
            "kind, or set rlhf.rewards to some of kind function or http and an rlhf.algorithm other than ppo"
        )


def load_reward_model(path: str | Path) -> Any:
    """Loads a sequence classifier with one label, in float32; one of several workers gets an `empty_model`, where the
    files allow it, with a head of zeros if they have none.

    Raises:
        UserError: there is none, its kind has no such head, or its file is damaged.
    """
    try:
        kind = AutoModelForSequenceClassification
        if is_shared() and (empty := empty_model(kind, path, new=("score.weight",), num_labels=1)) is not None:
            return empty
        return kind.from_pretrained(
            str(path), num_labels=1, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load a reward model from {path}: {first_line(error)}") from error


def load_ensemble(path: str | Path) -> list[Any]:
    """Loads the reward model of a folder, and the other members of its ensemble from folders below it.

    The mean over members is harder to exploit than one of them (Coste et al. 2023).
    """
    return [load_reward_model(folder) for folder in member_folders(Path(path))]


def member_folders(path: Path) -> list[Path]:
    """Lists the folder of a reward model, and those of the other members of its ensemble."""
    return [path, *sorted(path.glob(f"{MEMBER_PREFIX}*"))]


def with_new_head(path: str | Path) -> Any:
    """Puts a head of zeros on the trunk of a language model, so that training starts from equal rewards."""
    model = load_reward_model(path)
    make_real(model, [model.score.weight])
    torch.nn.init.zeros_(model.score.weight)
    return model


def token_values(model: Any, input_ids: Tensor) -> Tensor:
    """Computes the scalar output at every position. [N, T] -> [N, T], float32."""
    return scalar_outputs(model, trunk(model)(input_ids=input_ids, use_cache=False).last_hidden_state).float()


def scalar_outputs(model: Any, states: Tensor) -> Tensor:
    """Applies the scalar head, in float32 whatever the precision of the trunk. [..., H] -> [...].

    Rounded to eight bits, rewards of answers that are close change their order: 2.5 % of pairs, and 1 % with the trunk
    alone in bfloat16.
    """
    if states.dtype in (torch.bfloat16, torch.float16):
        states = states.float()
    with torch.autocast(states.device.type, enabled=False):
        outputs: Tensor = model.score(states).squeeze(-1)
    return outputs


@torch.no_grad()
def scale_head(model: Any, factor: float) -> None:
    """Multiplies the scalar output, whose head has no bias, by a factor."""
    make_real(model, [model.score.weight])
    model.score.weight.mul_(factor)
