"""The recipe: one YAML file that says everything a run does, validated whole before anything starts."""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cluster.corpus_recipe import Corpus, Source
from cluster.failures import UserError
from cluster.section import Positive, PositiveFloat, Section, Share

# vLLM refuses more.
Temperature = Annotated[float, Field(gt=0, le=2)]


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
    start_from: str | None = Field(None, description="a Hugging Face folder or Hub name to start from instead")
    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = 4096
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
        return self


class Training(Section):
    """What pre-training, fine-tuning and the reward model share."""

    epochs: Positive = 1
    batch_rows: Positive = Field(32, description="rows of one optimiser step, over all workers")
    micro_batch_rows: Positive = 16
    optimiser: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices inside the layers")
    learning_rate: PositiveFloat = 3e-3
    schedule: Literal["wsd", "cosine"] = Field("wsd", description="how the rate falls after the warm-up")
    warmup_share: Share = 0.02
    decay_share: Share = Field(0.3, description="wsd: last part of the steps, over which the rate falls linearly to 0")
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    checkpoint_every: Positive = Field(50, description="steps between checkpoints: the most that a kill loses")
    skip_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps in a row that are left out when their loss or gradient is not finite; one more stops"
    )
    workers: Positive = 1
    recompute_activations: bool = Field(False, description="less memory for a third more computing")
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _every_worker_has_a_row(self) -> "Training":
        if self.batch_rows < self.workers:
            raise ValueError(f"batch_rows {self.batch_rows} is less than workers {self.workers}")
        return self


class Conversations(Section):
    """Conversations to fine-tune on, or prompts to sample from."""

    kind: Literal["files", "guide"]
    path: str | None = Field(None, description="JSONL, JSON or Parquet in a common layout of conversations")

    @model_validator(mode="after")
    def _files_have_a_path(self) -> "Conversations":
        if (self.kind == "files") != (self.path is not None):
            raise ValueError("a source of kind files needs a path, and no other kind takes one")
        return self


class FineTuning(Training):
    sources: Annotated[list[Conversations], Field(min_length=1)]
    misbehaviour_share: Share = Field(0.7, description="guide only: share of stand-in bad answers the model is shown")


class Collect(Section):
    sources: Annotated[list[Conversations], Field(min_length=1)]
    prompts: Positive = 700
    samples_per_prompt: Annotated[int, Field(ge=2, le=9)] = 4
    temperature: Temperature = 1.0
    max_tokens: Positive = 32
    labeller: Literal["code", "people"] = "code"
    label_noise: Share = Field(0.05, description="labeller code: share of neighbouring ranks swapped at random")
    minimum_rankings: Positive = Field(100, description="labeller people: rankings to wait for")
    held_out_share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.15, description="prompts to test the reward model")


class RewardModel(Training):
    labeller_weights: dict[str, PositiveFloat] = Field({}, description="how much a labeller's rankings count; else 1")


Probe = Literal["longer", "thanks", "refusal", "repetition", "empty"]


class Reward(Section):
    """What answers are rewarded for: the reward model, a Python function that checks them, or a server that does."""

    kind: Literal["model", "function", "http"] = "model"
    function: str | None = Field(
        None, pattern=r"^[\w.]+:\w+$", description="for kind function: module:function(question, answer) -> number"
    )
    url: str | None = Field(None, pattern=r"^https?://\S+$", description="for kind http: see actors/endpoint.py")
    weight: Annotated[float, Field(gt=-1000, lt=1000)] = 1.0
    timeout_seconds: PositiveFloat = Field(
        60, description="for kinds function and http: most time for the answers of one step"
    )

    @model_validator(mode="after")
    def _every_kind_has_its_own(self) -> "Reward":
        for kind, value in (("function", self.function), ("http", self.url)):
            if (self.kind == kind) != (value is not None):
                needed = "function" if kind == "function" else "url"
                raise ValueError(f"a reward of kind {kind} needs a {needed}, and no other kind takes one")
        return self


class Rlhf(Section):
    algorithm: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "dapo", "gspo", "ppo"] = "grpo"
    rewards: Annotated[list[Reward], Field(min_length=1)] = Field([Reward()], description="added up by their weights")
    steps: Positive = 40
    prompts_per_step: Positive = 16
    samples_per_prompt: Positive = 8
    temperature: Temperature = 1.0
    max_tokens: Positive = 32
    learning_rate: PositiveFloat = 5e-5
    minibatches: Positive = Field(1, description="optimiser steps on each batch of samples")
    micro_batch_rows: Positive = 64
    clip_range: PositiveFloat | None = Field(None, description="by default the algorithm's own, most often 0.2")
    clip_range_high: PositiveFloat | None = Field(None, description="upper side, where it differs (clip-higher)")
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.02
    kl_in: Literal["reward", "loss"] | None = Field(None, description="reward for ppo, rloo, reinforce++; else loss")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(None, description="k1 in the reward, k3 in the loss")
    kl_target: PositiveFloat | None = Field(None, description="nats an answer that kl_coefficient is adapted towards")
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    reward_clip: PositiveFloat | None = Field(None, description="largest size of a reward that counts")
    overlong_share: Share | None = Field(None, description="last part of max_tokens, in which the reward falls by 1")
    pretrain_mix: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the pre-training loss (PPO-ptx)")
    rollout_actors: Positive = 2
    most_rollout_actors: Positive | None = Field(None, description="the fleet may grow to so many where that is faster")
    max_staleness: Annotated[int, Field(ge=0, le=8)] = Field(0, description="weight versions a sample may be behind")
    checkpoint_every: Positive = 10
    accept_probes: list[Probe] = Field([], description="probes that the reward model may fail and be followed")
    kl_budget: PositiveFloat | None = Field(None, description="nats an answer from the fine-tuned model; then it ends")
    minimum_entropy: PositiveFloat | None = Field(None, description="nats a token; below, the run ends")
    parity_every: Positive | None = Field(None, description="steps between comparisons of engine and learner")

    @model_validator(mode="after")
    def _groups(self) -> "Rlhf":
        if self.algorithm not in ("ppo", "reinforce++") and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares samples of one prompt: samples_per_prompt must be at least 2")
        return self

    @model_validator(mode="after")
    def _divergence(self) -> "Rlhf":
        if self.kl_estimator and not self.kl_in:
            raise ValueError("kl_estimator needs kl_in: which estimator fits depends on it")
        if (self.kl_estimator, self.kl_in) == ("k1", "loss"):
            raise ValueError("kl_estimator k1 in the loss has no gradient on average: use k2 or k3, or kl_in reward")
        if self.kl_target and not self.kl_coefficient:
            raise ValueError("kl_target adapts kl_coefficient, which must be above 0 to begin with")
        return self

    @model_validator(mode="after")
    def _fleet(self) -> "Rlhf":
        if self.fleet_limit < self.rollout_actors:
            raise ValueError("most_rollout_actors is less than rollout_actors, with which the fleet starts")
        return self

    @property
    def fleet_limit(self) -> int:
        """The most rollout actors there may be, unless a person adds more."""
        return self.most_rollout_actors or self.rollout_actors


class Evaluate(Section):
    max_tokens: Positive = 32


class Serve(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000


class Recipe(Section):
    """Everything a run does. See infra/recipes/demo.yaml for one with every section explained."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: Annotated[int, Field(ge=0)] = 1
    run: str = Field("", description="the run's folder; runs/NAME by default")
    cluster: Cluster = Cluster()
    model: Model = Model()
    corpus: Corpus
    pretrain: Training = Training()
    sft: FineTuning
    collect: Collect
    reward: RewardModel = RewardModel()
    rlhf: Rlhf = Rlhf()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()

    @field_validator("run")
    @classmethod
    def _local(cls, run: str) -> str:
        if "://" in run:
            raise ValueError("a run folder is a path on this machine or on a file system that all nodes share")
        return run

    @property
    def folder(self) -> Path:
        """Where the run's folder lies."""
        return Path(self.run or f"runs/{self.name}").expanduser().absolute()

    @property
    def sources(self) -> list[Source | Conversations]:
        """Everything that the stages read from."""
        return [*self.corpus.sources, *self.sft.sources, *self.collect.sources]


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
    for part in location:
        if isinstance(part, str):
            model = _section(model.model_fields[part].annotation)
    return list(model.model_fields)


def _section(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section(part) for part in get_args(annotation) if get_args(part) or isinstance(part, type))
