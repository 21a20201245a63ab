"""The recipe's section `training`, which `pretrain`, `sft`, `reward` and `dpo` share, and the keys that each of these
adds."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.recipe.base import (
    CheckpointEvery,
    Decayed,
    Lora,
    MicroBatchRows,
    PathKind,
    Positive,
    PositiveFloat,
    Precision,
    Probe,
    RecomputeActivations,
    Section,
    Share,
    TrackerName,
    TrainingLora,
)
from cluster.recipe.collect import ChatSource

Weight = Annotated[float, Field(ge=0)]


class Training(Section):
    """Settings that pretrain, sft, reward and dpo share. A value in one of those sections overrides the value here."""

    epochs: Positive = Field(1, description="passes over the training rows")
    batch_rows: Positive = Field(
        32,
        description="rows of an optimizer step over all workers; a row is a packed context, in reward a ranking, in "
        "dpo a pair or an answer",
    )
    micro_batch_rows: MicroBatchRows = 16
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw: for all parameters; muon: for the matrices inside the layers, AdamW for the others"
    )
    learning_rate: PositiveFloat = Field(3e-3, description="peak learning rate, reached after the warm-up")
    schedule: Literal["wsd", "cosine"] = Field(
        "wsd",
        description="learning rate after the warm-up. wsd: constant, then falling linearly; cosine: falling throughout",
    )
    warmup_share: Share = Field(
        0.02, description="share of the steps, at the start, over which the rate rises linearly"
    )
    decay_share: Share = Field(
        0.3, description="for schedule wsd: share of the steps, at the end, over which the rate falls to 0"
    )
    min_rate_share: Share = Field(0.0, description="share of the peak rate that the schedule falls to")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="decoupled weight decay of the matrices")
    weight_decay_on: Decayed = Field(
        "matrices",
        description="what decays. matrices: all of them; layers: those inside layers, and neither embeddings nor head; "
        "all: norms and biases too",
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay rate of AdamW's first moment")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="decay rate of AdamW's second moment")
    adam_epsilon: PositiveFloat = Field(1e-8, description="number added to the root of AdamW's second moment")
    max_gradient_norm: PositiveFloat = Field(
        1.0, description="norm that longer gradients are scaled down to; all weights together"
    )
    checkpoint_every: CheckpointEvery = 50
    evaluation_rows: Positive = Field(
        512,
        description="held-out rows, at most, that the loss is measured on at each checkpoint: a random sample, the "
        "same at every checkpoint; with the defaults it takes a tenth of the time of training",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the model to keep: of the last step, or of the checkpoint with the lowest held-out loss"
    )
    skip_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="consecutive steps that may be skipped because their loss or gradient is not finite; after one "
        "more, training fails",
    )
    workers: Positive = Field(1, description="training workers, which share the rows and the model (FSDP2)")
    reduce_once: bool = Field(
        False,
        description="with several workers, add up their gradients once a step and not after every micro-batch: faster "
        "where the network is slow, for the memory of whole gradients on each worker",
    )
    recompute_activations: RecomputeActivations = False
    compile_layers: bool | None = Field(
        None,
        description="compile the layers (torch.compile), with one worker: faster steps after 10 to 30 s; unset: where "
        "training is long enough to gain",
    )
    precision: Precision | None = Field(
        None,
        description="of matrix products; unset: bfloat16 where the processor has instructions for it, else float32",
    )
    export_precision: Precision = Field(
        "float32",
        description="of the weights in the model's folder: bfloat16 takes half the space, and its loss may differ by "
        "0.001 of the trained model's",
    )

    trackers: list[TrackerName] = Field(
        [],
        description="experiment trackers that get the metrics beside metrics.jsonl and the event files, each by its "
        "own client, which has to be installed where the command runs; those of training are RLHF's too",
    )

    @model_validator(mode="after")
    def _one_worker_compiles(self) -> "Training":
        if self.compile_layers and self.workers > 1:
            raise ValueError("compile_layers is for one worker: set workers to 1 or leave it out")
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_row(self) -> "Training":
        if self.batch_rows < self.workers:
            raise ValueError(f"batch_rows {self.batch_rows} is less than workers {self.workers}: each needs a row")
        return self


class LanguageTraining(Training):
    """Training as a language model, with samples of the model's text at each checkpoint."""

    samples: Annotated[int, Field(ge=0)] = Field(
        4, description="held-out texts that the model continues at each checkpoint, for the run page"
    )
    sample_tokens: Positive = Field(32, description="the most tokens of such a continuation")


class FineTuning(LanguageTraining):
    """Supervised fine-tuning: the base model learns the assistant's turns of conversations."""

    sources: Annotated[list[ChatSource], Field(min_length=1)] = Field(description="conversations to learn from")
    lora: TrainingLora | None = Field(None, description="train low-rank adapters only; unset: train all weights")
    chat_template: Annotated[str | None, PathKind.TEMPLATE] = Field(
        None,
        description="the chat template to train with and to leave in sft/: a Jinja file, or triptych or chatml, which "
        "are built in; unset: the base model's own, or triptych where it has none",
    )
    end_token: str | None = Field(
        None,
        min_length=1,
        description="the token that ends the assistant's turn; unset: the one that the template writes behind an "
        "answer, or eos_token where it writes none",
    )
    max_bad_share: Share = Field(
        0.01,
        description="share of the sources' rows that cannot be read, or not be written by the chat template, and are "
        "left out (quarantine.jsonl lists them); with more, the stage fails",
    )
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.02, description="share of the conversations that are held out of training, to measure the loss on"
    )
    pretrain_share: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.0,
        description="share of the training rows that are text of the pre-training corpus, without which the model "
        "forgets how to continue text; needs corpus.sources",
    )

    @field_validator("sources")
    @classmethod
    def _have_answers(cls, sources: list[ChatSource]) -> list[ChatSource]:
        if any(source.kind == "live" for source in sources):
            raise ValueError("sources of kind live are for collect.sources: prompts have no answers to learn from")
        return sources


class SourceWeights(Section):
    """Weights of the sources of judgements in the loss; 0 leaves one out."""

    rankings: Weight = Field(1.0, description="rankings by people")
    function: Weight = Field(1.0, description="rankings by a function in people's place")
    votes: Weight = Field(
        1.0, description="votes of the compare page; a vote that all are bad makes each answer a bad one"
    )
    better: Weight = Field(1.0, description="answers that people wrote, each paired with the best that was shown")
    thumbs: Weight = Field(0.5, description="thumbs up and down in the chat, each for one answer")
    all_bad: Weight = Field(0.5, description="judgements that all answers are bad, which make each answer a bad one")


class RewardModel(Training):
    """The reward model, trained on rankings; a row is one annotator's ranking of one prompt's answers."""

    evaluation_rows: Positive = Field(
        4096, description="held-out rankings, at most, that loss and accuracy are measured on at each checkpoint"
    )
    annotator_weights: dict[str, PositiveFloat] = Field(
        {}, description="weight of an annotator's rankings in the loss, by the annotator's name; 1 for those not named"
    )
    source_weights: SourceWeights = Field(SourceWeights(), description="weights of the sources of judgements")
    members: Annotated[int, Field(ge=1, le=9)] = Field(
        1,
        description="reward models in an ensemble, whose mean is the reward; all but the first are trained on a "
        "bootstrap sample of the prompts",
    )
    counterexamples: list[Probe] = Field(
        [],
        description="probes to train against: each ranking gets its best answer once more for each, made worse in the "
        "way that it tests; one named several times is applied several times",
    )
    curve: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [],
        description="shares of the training prompts to train additional models on, for a curve of accuracy over the "
        "number of prompts",
    )


class Dpo(Training):
    """Preference optimization of the fine-tuned model without a reward model: DPO, IPO or KTO. A row is a pair of a
    ranking; for loss kto, an answer."""

    loss: Literal["dpo", "ipo", "kto"] = Field(
        "dpo",
        description="dpo: pairs (Rafailov et al. 2023); ipo: pairs, up to a margin of 1 / (2 beta) nats (Azar et al. "
        "2023, eq. 17); kto: answers that are good or bad by themselves, thumbs among them (Ethayarajh et al. 2024)",
    )
    beta: PositiveFloat = Field(
        0.1,
        description="strength of the KL constraint to the fine-tuned model (Rafailov et al. 2023, eq. 7; IPO's τ; "
        "KTO's β)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="for loss dpo: share of the pairs that are taken to be ordered wrongly (cDPO, Mitchell 2023)"
    )
    desirable_weight: PositiveFloat = Field(
        1.0,
        description="for loss kto: weight of good answers. In the paper, this weight times the number of good "
        "answers is 1 to 1.5 times undesirable_weight times the number of bad ones",
    )
    undesirable_weight: PositiveFloat = Field(1.0, description="for loss kto: weight of bad answers")
    lora: Lora | None = Field(
        None,
        description="train low-rank adapters only; the reference is the model without them, so that one model is held "
        "instead of two; unset: train all weights",
    )
    annotator_weights: dict[str, PositiveFloat] = Field(
        {}, description="weight of an annotator's judgements in the loss, by the annotator's name; 1 for others"
    )
    source_weights: SourceWeights = Field(
        SourceWeights(), description="weights of the sources of judgements; thumbs and all_bad reach loss kto alone"
    )
    micro_batch_rows: Positive = Field(
        8, description="pairs, or answers, of a forward pass: less memory with fewer, the same result"
    )
    learning_rate: PositiveFloat = Field(
        5e-5,
        description="peak learning rate, reached after the warm-up; low-rank adapters need one about ten times as high",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay of the matrices")
    evaluation_rows: Positive = Field(
        4096, description="held-out rows, at most, that loss and accuracy are measured on at each checkpoint"
    )

    @model_validator(mode="after")
    def _options_fit_the_loss(self) -> "Dpo":
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f"label_smoothing is for loss dpo, and loss is {self.loss}: leave it out")
        if self.loss != "kto" and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            raise ValueError(f"desirable_weight and undesirable_weight are for loss kto, and loss is {self.loss}")
        return self


TRAINING_SECTIONS: dict[str, type[Training]] = {
    "pretrain": LanguageTraining,
    "sft": FineTuning,
    "reward": RewardModel,
    "dpo": Dpo,
}


def inherited_fields(kind: type[Training]) -> set[str]:
    """Returns the fields that a section takes from `training`: all for which it has no default of its own."""
    return set(Training.model_fields) - set(kind.__annotations__)


def merge_shared_training(data: dict[str, Any]) -> dict[str, Any]:
    """Copies the values of `training` into each section that trains and does not set them.

    Args:
        data: a recipe as read from YAML.
    """
    shared = data.get("training")
    if not isinstance(shared, dict) or not shared:
        return data
    sections = {}
    for name, kind in TRAINING_SECTIONS.items():
        own = data.get(name, None if name == "dpo" else {})
        if isinstance(own, dict):
            sections[name] = {key: value for key, value in shared.items() if key in inherited_fields(kind)} | own
    return data | sections
