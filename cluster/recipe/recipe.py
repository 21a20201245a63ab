"""The recipe: everything that a run does, validated whole before anything starts."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from cluster.recipe.base import Section
from cluster.recipe.collect import Collect
from cluster.recipe.corpus import Corpus
from cluster.recipe.evaluate import Evaluate
from cluster.recipe.model import Cluster, Model
from cluster.recipe.rlhf import Rlhf
from cluster.recipe.serve import Serve
from cluster.recipe.training import Dpo, FineTuning, LanguageTraining, RewardModel, Training, with_shared_training


class Recipe(Section):
    """Everything a run does. See infra/recipes/demo.yaml for one with every section explained."""

    name: str = Field(pattern=r"^[\w.-]+$", description="of the run: letters, digits, dots and dashes")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="decides every draw; the same seed gives the same run")
    run: str = Field("", description="the run's folder; runs/NAME by default")
    cluster: Cluster = Field(Cluster(), description="where the work runs")
    model: Model = Field(Model(), description="the model's shape, or a model to start from")
    corpus: Corpus = Field(Corpus(), description="without sources, fine-tuning begins from model.start_from")
    training: Training = Field(
        Training(), description="what pretrain, sft, reward and dpo share; each section overrides what differs there"
    )
    pretrain: LanguageTraining = Field(LanguageTraining(), description="pre-training: next-word prediction")
    sft: FineTuning = Field(description="supervised fine-tuning on conversations")
    collect: Collect = Field(description="answers that are sampled and ranked, and the prompts of RLHF")
    reward: RewardModel = Field(RewardModel(), description="the reward model, which learns the rankings")
    rlhf: Rlhf = Field(Rlhf(), description="reinforcement learning from rewards")
    dpo: Dpo | None = Field(None, description="for `triptych dpo`, which `triptych run` leaves out")
    evaluate: Evaluate = Field(Evaluate(), description="what the models of the run are compared on")
    serve: Serve = Field(Serve(), description="the models over HTTP")

    @model_validator(mode="before")
    @classmethod
    def _share_training(cls, given: Any) -> Any:
        return with_shared_training(given) if isinstance(given, dict) else given

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
