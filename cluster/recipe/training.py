"""The recipe's sections on training: what all of it shares, and what fine-tuning, reward model and DPO add."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.recipe.base import Lora, Positive, PositiveFloat, Precision, Probe, Section, Share
from cluster.recipe.collect import ChatSource


class Training(Section):
    """What pre-training, fine-tuning and the reward model share."""

    epochs: Positive = Field(1, description="passes over the training rows")
    batch_rows: Positive = Field(32, description="rows of one optimizer step, over all workers")
    micro_batch_rows: Positive = Field(16, description="rows of one forward pass; does not change what is computed")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices inside the layers")
    learning_rate: PositiveFloat = Field(3e-3, description="the highest, after the warm-up")
    schedule: Literal["wsd", "cosine"] = Field("wsd", description="how the rate falls after the warm-up")
    warmup_share: Share = Field(0.02, description="first part of the steps, over which the rate rises linearly")
    decay_share: Share = Field(0.3, description="wsd: last part of the steps, over which the rate falls linearly to 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="of matrices, decoupled (AdamW)")
    checkpoint_every: Positive = Field(50, description="steps between checkpoints: the most that a kill loses")
    keep: Literal["last", "best"] = Field(
        "last", description="the model of the last step, or of the checkpoint with the lowest held-out loss"
    )
    skip_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps in a row that are left out when their loss or gradient is not finite; one more stops"
    )
    workers: Positive = Field(1, description="Ray Train workers that share the rows and the model (FSDP2)")
    recompute_activations: bool = Field(False, description="less memory for a third more computing")
    compile_layers: bool | None = Field(
        None, description="faster steps, once the first has compiled them; unset: where that pays, with one worker"
    )
    precision: Precision | None = Field(
        None, description="of the matrix products; unset: bfloat16 where the worker has instructions for it"
    )

    @model_validator(mode="after")
    def _one_worker_compiles(self) -> "Training":
        if self.compile_layers and self.workers > 1:
            raise ValueError("compile_layers is for one worker")
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_row(self) -> "Training":
        if self.batch_rows < self.workers:
            raise ValueError(f"batch_rows {self.batch_rows} is less than workers {self.workers}")
        return self


class LanguageTraining(Training):
    """What is trained to write: it can be read as it learns."""

    samples: Annotated[int, Field(ge=0)] = Field(4, description="held-out texts that it continues at each checkpoint")
    sample_tokens: Positive = Field(32, description="most tokens of such a continuation")


class FineTuning(LanguageTraining):
    sources: Annotated[list[ChatSource], Field(min_length=1)] = Field(description="conversations to learn from")
    lora: Lora | None = Field(None, description="train adapters, and keep the model's own weights as they are")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.02, description="conversations not trained on")


class RewardModel(Training):
    annotator_weights: dict[str, PositiveFloat] = Field(
        {}, description="how much an annotator's rankings count; else 1"
    )
    members: Annotated[int, Field(ge=1, le=9)] = Field(
        1, description="reward models whose mean is the reward; all but the first learn from a resample of the prompts"
    )
    counterexamples: list[Probe] = Field(
        [],
        description="probes that are also taught: each ranking gets its best answer once more, made worse in one way",
    )
    curve: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="shares of the training prompts that smaller models are trained on first: accuracy over size"
    )


class Dpo(Training):
    """DPO trains the fine-tuned model on the pairs of `collect`; a row is a pair."""

    micro_batch_rows: Positive = Field(8, description="pairs of one forward pass")
    learning_rate: PositiveFloat = Field(5e-5, description="the highest, after the warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of matrices, decoupled (AdamW)")
    beta: PositiveFloat = Field(0.1, description="how strongly the model is held to the fine-tuned one")


TRAINED: dict[str, type[Training]] = {
    "pretrain": LanguageTraining,
    "sft": FineTuning,
    "reward": RewardModel,
    "dpo": Dpo,
}


def inherited(kind: type[Training]) -> set[str]:
    """The fields that a section takes from `training`: all that it does not give a default of its own."""
    return set(Training.model_fields) - set(kind.__annotations__)


def with_shared_training(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's data in which each section that trains has what `training` says and the section does not."""
    shared = data.get("training")
    if not isinstance(shared, dict) or not shared:
        return data
    sections = {}
    for name, kind in TRAINED.items():
        own = data.get(name, None if name == "dpo" else {})
        if isinstance(own, dict):
            sections[name] = {key: value for key, value in shared.items() if key in inherited(kind)} | own
    return data | sections
