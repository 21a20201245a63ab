"""The recipe: one YAML file that says everything a run does, validated whole before anything starts."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cluster.errors import UserError
from cluster.recipe.base import Lora, Place, Positive, PositiveFloat, Precision, Section, Share, Temperature
from cluster.recipe.corpus import Corpus, Source
from cluster.recipe.rlhf import Probe, Rlhf
from cluster.recipe.serve import Serve


class Cluster(Section):
    """Where the work runs."""

    address: str = Field("local", description="local, auto (the cluster this machine belongs to) or ray://HOST:PORT")
    cpus: Positive | None = Field(None, description="CPU cores to use; all of the machine by default")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="GPUs to use; all of the machine by default")
    memory_gb: PositiveFloat | None = Field(None, description="most memory to plan with; what is available by default")
    gpu_memory_gb: PositiveFloat | None = Field(None, description="memory of each GPU; what is found by default")
    deadline_minutes: PositiveFloat = Field(60, description="longest wait for any single step of a stage")

    @property
    def deadline_seconds(self) -> float:
        return self.deadline_minutes * 60


def head_size(hidden: int) -> int:
    """The width of an attention head, unless the recipe sets their number."""
    return 32 if hidden < 512 else 64


class Model(Section):
    """The model's shape. `size` derives the rest; a field that is set wins."""

    size: str = Field("2.5M", pattern=r"^\d+(\.\d+)?[KMB]$", description="parameters, e.g. 2.5M, 135M, 8B")
    start_from: Annotated[str | None, Place.MODEL] = Field(
        None, description="a Hugging Face folder, a Hub name or a .gguf file to start from instead"
    )
    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = Field(
        4096, description="tokens that the corpus stage learns; a model to start from brings its own"
    )
    context: Annotated[int, Field(ge=32)] = Field(256, description="tokens a row of training text and a conversation")
    hidden: Positive | None = None
    layers: Positive | None = None
    heads: Positive | None = None

    @property
    def parameters(self) -> int:
        """The number of parameters that `size` names."""
        return round(float(self.size[:-1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[self.size[-1]])

    @model_validator(mode="after")
    def _shape(self) -> "Model":
        if self.parameters < 1:
            raise ValueError(f"size {self.size} has no parameters")
        if self.hidden and self.heads and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.hidden and not self.heads and self.hidden % head_size(self.hidden):
            raise ValueError(f"hidden {self.hidden} is not a multiple of {head_size(self.hidden)}: set heads too")
        if self.start_from and (self.hidden or self.layers or self.heads):
            raise ValueError("start_from brings a model with its own shape: leave out hidden, layers and heads")
        return self


class Training(Section):
    """What pre-training, fine-tuning and the reward model share."""

    epochs: Positive = 1
    batch_rows: Positive = Field(32, description="rows of one optimizer step, over all workers")
    micro_batch_rows: Positive = 16
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices inside the layers")
    learning_rate: PositiveFloat = 3e-3
    schedule: Literal["wsd", "cosine"] = Field("wsd", description="how the rate falls after the warm-up")
    warmup_share: Share = 0.02
    decay_share: Share = Field(0.3, description="wsd: last part of the steps, over which the rate falls linearly to 0")
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    checkpoint_every: Positive = Field(50, description="steps between checkpoints: the most that a kill loses")
    keep: Literal["last", "best"] = Field(
        "last", description="the model of the last step, or of the checkpoint with the lowest held-out loss"
    )
    skip_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps in a row that are left out when their loss or gradient is not finite; one more stops"
    )
    workers: Positive = 1
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


class ChatSource(Section):
    """Conversations to fine-tune on, or prompts to sample from."""

    kind: Literal["files", "guide"]
    path: Annotated[str | None, Place.FILES] = Field(
        None, description="JSONL, JSON or Parquet in a common layout of conversations"
    )

    @model_validator(mode="after")
    def _files_have_a_path(self) -> "ChatSource":
        if (self.kind == "files") != (self.path is not None):
            raise ValueError("a source of kind files needs a path, and no other kind takes one")
        return self


class FineTuning(LanguageTraining):
    sources: Annotated[list[ChatSource], Field(min_length=1)]
    lora: Lora | None = Field(None, description="train adapters, and keep the model's own weights as they are")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.02, description="conversations not trained on")
    misbehavior_share: Share = Field(0.7, description="guide only: share of stand-in bad answers the model is shown")


class Collect(Section):
    sources: Annotated[list[ChatSource], Field(min_length=1)]
    prompts: Positive = 700
    samples_per_prompt: Annotated[int, Field(ge=2, le=9)] = 4
    temperature: Temperature = 1.0
    max_tokens: Positive = 32
    annotator: Literal["code", "people", "imported"] = Field(
        "code", description="imported: what `triptych feedback import` added is all there is; nothing is sampled"
    )
    label_noise: Share = Field(0.05, description="annotator code: share of neighboring ranks swapped at random")
    minimum_rankings: Positive = Field(100, description="annotator people: rankings to wait for")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.15, description="prompts to test the reward model")


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

    micro_batch_rows: Positive = 8
    learning_rate: PositiveFloat = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta: PositiveFloat = Field(0.1, description="how strongly the model is held to the fine-tuned one")


class Evaluate(Section):
    max_tokens: Positive = Field(32, description="of an answer to the guide's questions")
    prompts: Positive = Field(200, description="prompts of collect.sources, kept back from RLHF, to reward answers to")
    samples_per_prompt: Positive = Field(2, description="answers to each of these, by every model")
    text: list[Source] = Field([], description="to measure perplexity on; by default what the corpus held out")
    text_tokens: Positive = Field(20_000, description="the most of it that is read")


class Recipe(Section):
    """Everything a run does. See infra/recipes/demo.yaml for one with every section explained."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: Annotated[int, Field(ge=0)] = 1
    run: str = Field("", description="the run's folder; runs/NAME by default")
    cluster: Cluster = Cluster()
    model: Model = Model()
    corpus: Corpus = Field(Corpus(), description="without sources, fine-tuning begins from model.start_from")
    pretrain: LanguageTraining = LanguageTraining()
    sft: FineTuning
    collect: Collect
    reward: RewardModel = RewardModel()
    rlhf: Rlhf = Rlhf()
    dpo: Dpo | None = Field(None, description="for `triptych dpo`, which `triptych run` leaves out")
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _vocabulary_has_room(self) -> "Recipe":
        if self.corpus.tokenizer == "wordpiece" and self.model.vocabulary < 600:
            raise ValueError("corpus.tokenizer wordpiece takes two tokens a byte: set model.vocabulary to 600 or more")
        return self

    @field_validator("run")
    @classmethod
    def _local(cls, run: str) -> str:
        if "://" in run:
            raise ValueError("a run folder is a path on this machine or on a file system that all nodes share")
        return run

    @model_validator(mode="after")
    def _something_to_start_from(self) -> "Recipe":
        if not self.corpus.sources and not self.model.start_from:
            raise ValueError("corpus has no sources: name some, or set model.start_from to a model to fine-tune")
        if not self.corpus.sources and self.rlhf.pretrain_mix:
            raise ValueError("rlhf.pretrain_mix takes text from the corpus, which has no sources")
        return self

    @property
    def folder(self) -> Path:
        """Where the run's folder lies."""
        return Path(self.run or f"runs/{self.name}").expanduser().absolute()


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe and applies `key=value` overrides such as `rlhf.steps=20`.

    Raises:
        UserError: the file is missing, is no YAML, or holds an unknown key, a wrong type or a value out of range.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {_reason(error)}") from error
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a recipe: it should hold sections such as model, corpus and sft")
    # Sections that share a YAML anchor are one object: an override of one must not reach the other.
    data = json.loads(json.dumps(data, default=str))
    for override in overrides or []:
        _apply(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out, so that `load_recipe` gives an equal one."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as text; people write it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"cannot read the override {override!r}: write key=value, e.g. rlhf.steps=20")
    target: Any = data
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(target, dict):
            target = target.setdefault(name, {})
        elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
            target = target[int(name)]
        else:
            raise UserError(f"override {override!r}: the recipe has no {name!r} to set {last!r} in")
    if not isinstance(target, dict):
        raise UserError(f"override {override!r}: {'.'.join(parents)!r} is not a section")
    try:
        target[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        names = _field_names(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), names, n=1, cutoff=0.0)
        nearest = ".".join(str(part) for part in (*error["loc"][:-1], *near))
        return f"unknown key {where!r}; the nearest known key is {nearest!r}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f", not {error['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{given}"


def _field_names(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    parts = iter(location)
    for part in parts:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            if get_origin(annotation) is dict:
                # The name of an entry, which people choose.
                next(parts)
            model = next(_sections(annotation))
    return list(model.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
