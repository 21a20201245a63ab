"""The recipe's sections `cluster`, the machines, and `model`, the model's size and shape."""

from typing import Annotated

from pydantic import Field, model_validator

from cluster.recipe.base import SIZE_PATTERN, PathKind, Positive, PositiveFloat, Section


class Cluster(Section):
    """The machines to use, and how long to wait for them."""

    address: str = Field(
        "local",
        description="local: this machine; auto: the Ray cluster that this machine belongs to; or ray://HOST:PORT",
    )
    cpus: Positive | None = Field(
        None,
        description="the most CPU cores to use; on a cluster that has fewer, the stages wait for more; unset: all",
    )
    gpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the most GPUs to use; on a cluster that has fewer, the stages wait for more; unset: all"
    )
    memory_gb: PositiveFloat | None = Field(
        None, description="for address local: main memory to plan with, in GB; unset: what is available"
    )
    gpu_memory_gb: PositiveFloat | None = Field(
        None, description="memory of each GPU to plan with, in GB; unset: what the GPUs report"
    )
    deadline_minutes: PositiveFloat = Field(
        60, description="the longest wait, in minutes, for an actor to start, a step to finish, or people to rank"
    )

    @property
    def deadline_seconds(self) -> float:
        return self.deadline_minutes * 60

    @property
    def is_elsewhere(self) -> bool:
        """Whether Ray's client connects to a cluster that this machine is no part of."""
        return self.address.startswith("ray://")


def head_size(hidden: int) -> int:
    """Returns the default width of an attention head in a model of that hidden width."""
    return 32 if hidden < 512 else 64


class Model(Section):
    """The model's size and shape. `size` decides width, depth and heads; each can be set instead."""

    size: str = Field(
        "2.5M", pattern=SIZE_PATTERN, description="approximate number of parameters, such as 800K, 135M or 8B"
    )
    start_from: Annotated[str | None, PathKind.MODEL] = Field(
        None,
        description="a model to start from instead of a new one: a Hugging Face folder, a name on the Hugging Face "
        "Hub, or a .gguf file; unset: a new model",
    )
    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = Field(
        4096, description="size of the tokenizer that the corpus stage trains; a model to start from brings its own"
    )
    context: Annotated[int, Field(ge=32)] = Field(
        256, description="context length in tokens: of a training row, and of a conversation with its answer"
    )
    hidden: Positive | None = Field(None, description="width of the hidden states; unset: derived from size")
    layers: Positive | None = Field(None, description="number of layers; unset: derived from size")
    heads: Positive | None = Field(
        None, description="number of attention heads; unset: hidden / 32 below a width of 512, else hidden / 64"
    )

    @property
    def parameters(self) -> int:
        """`size` as a number of parameters."""
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
            raise ValueError("start_from names a model with a shape of its own: leave out hidden, layers and heads")
        return self
