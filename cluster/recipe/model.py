"""The recipe's sections on the machine and on the model's shape."""

from typing import Annotated

from pydantic import Field, model_validator

from cluster.recipe.base import Place, Positive, PositiveFloat, Section


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
    hidden: Positive | None = Field(None, description="width; derived from size by default")
    layers: Positive | None = Field(None, description="depth; derived from size by default")
    heads: Positive | None = Field(None, description="attention heads; of 32 or 64 units each by default")

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
