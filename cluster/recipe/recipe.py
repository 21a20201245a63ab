"""The whole recipe: its sections, and the rules that span several of them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.recipe.base import NAME_PATTERN, Section
from cluster.recipe.collect import Collect
from cluster.recipe.corpus import Corpus
from cluster.recipe.evaluate import Evaluate, add_task_files
from cluster.recipe.experiment import AS_IT_IS, Experiment
from cluster.recipe.loop import Loop
from cluster.recipe.model import Cluster, Model
from cluster.recipe.rlhf.section import Rlhf
from cluster.recipe.serve import Serve
from cluster.recipe.training import Dpo, FineTuning, LanguageTraining, RewardModel, Training, merge_shared_training


class Recipe(Section):
    """All settings of a run. infra/recipes/demo.yaml is an example with comments."""

    name: str = Field(
        pattern=NAME_PATTERN, description="name of the run: letters, digits, dots, dashes and underscores"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        1, description="seed of every random draw; the same recipe and seed give the same run"
    )
    run: str = Field("", description="the run's folder; empty: runs/ and the name of the run")
    cluster: Cluster = Field(Cluster(), description="the machines to use")
    model: Model = Field(Model(), description="size and shape of the model, or a model to start from")
    corpus: Corpus = Field(
        Corpus(), description="text to pre-train on; without sources, fine-tuning starts from model.start_from"
    )
    training: Training = Field(
        Training(), description="settings that pretrain, sft, reward and dpo share and may override"
    )
    pretrain: LanguageTraining = Field(LanguageTraining(), description="pre-training: next-word prediction")
    sft: FineTuning = Field(description="supervised fine-tuning (SFT) on conversations")
    collect: Collect = Field(description="sampling answers and having them ranked")
    reward: RewardModel = Field(RewardModel(), description="the reward model, trained on the rankings")
    rlhf: Rlhf = Field(Rlhf(), description="reinforcement learning from rewards")
    dpo: Dpo | None = Field(None, description="direct preference optimization (DPO), run by `triptych dpo` only")
    evaluate: Evaluate = Field(Evaluate(), description="the comparison of the run's models")
    serve: Serve = Field(Serve(), description="serving the run's models over HTTP")
    loop: Loop = Field(Loop(), description="new judgements become the next policy, which takes over if it passes")
    experiment: Experiment | None = Field(
        None, description="variants of the corpus to compare, run by `triptych experiment` only"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        return add_task_files(merge_shared_training(given)) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _vocabulary_has_room(self) -> "Recipe":
        if self.corpus.tokenizer == "wordpiece" and self.model.vocabulary < 600:
            raise ValueError(
                "corpus.tokenizer wordpiece needs two tokens per byte value: set model.vocabulary to 600 or more"
            )
        return self

    @model_validator(mode="after")
    def _variants_are_corpora(self) -> "Recipe":
        for name, changes in self.experiment.variants.items() if self.experiment else ():
            if name == AS_IT_IS:
                raise ValueError(f"experiment.variants: {AS_IT_IS} is the corpus as the recipe has it; rename this one")
            try:
                corpus = Corpus.model_validate({**self.corpus.model_dump(), **changes})
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, ("experiment.variants", name, *first["loc"])))
                raise ValueError(f"{place}: {first['msg']}") from error
            if not corpus.sources:
                raise ValueError(f"experiment.variants.{name} has no corpus.sources")
        return self

    @field_validator("run")
    @classmethod
    def _local(cls, run: str) -> str:
        if "://" in run:
            raise ValueError("the run folder must be a path on this machine or on a file system that all nodes share")
        return run

    @model_validator(mode="after")
    def _something_to_start_from(self) -> "Recipe":
        if not self.corpus.sources and not self.model.start_from:
            raise ValueError("corpus.sources is empty: add sources, or set model.start_from to a model to fine-tune")
        if not self.corpus.sources and self.sft.pretrain_share:
            raise ValueError("sft.pretrain_share needs text to mix in: add corpus.sources, or set it to 0")
        if not self.corpus.sources and self.rlhf.pretrain_mix:
            raise ValueError("rlhf.pretrain_mix needs text to mix in: add corpus.sources, or set it to 0")
        return self

    @model_validator(mode="after")
    def _members_can_disagree(self) -> "Recipe":
        if self.collect.select and self.collect.select.by == "disagreement" and self.reward.members < 2:
            raise ValueError(
                "collect.select.by disagreement needs reward models that can differ: set reward.members to 2 or more, "
                "or collect.select.by to uncertainty"
            )
        return self

    @property
    def folder(self) -> Path:
        """The absolute path of the run's folder."""
        return Path(self.run or f"runs/{self.name}").expanduser().absolute()
