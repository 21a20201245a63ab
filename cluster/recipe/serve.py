"""The recipe's section `serve`: address, number of replicas, aliases and adapters of the served models."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from cluster.recipe.base import PathKind, Positive, PositiveFloat, Section

ModelName = Literal["base", "sft", "policy", "reward"]


class Alias(Section):
    """A further name for one model, or for several that share its requests. A plain text names one model."""

    models: Annotated[dict[ModelName, PositiveFloat], Field(min_length=1)] = Field(
        description="the models, each with its share of the requests"
    )
    shadow: ModelName | None = Field(
        None, description="a model that gets the same requests for its metrics alone: its answers are discarded"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, given: Any) -> Any:
        return {"models": {given: 1}} if isinstance(given, str) else given


class Adapter(Section):
    """A further model: a low-rank adapter of one of the run's models, served by the same engine."""

    path: Annotated[str, PathKind.SERVED] = Field(description="a folder in PEFT's format, such as runs/my/sft/adapter")
    model: Literal["base", "sft", "policy"] = Field("base", description="the model that the adapter was trained on")


class Serve(Section):
    """The HTTP server: its address, its replicas, and further names and adapters of its models."""

    host: str = Field("127.0.0.1", description="address to listen on; on any but a loopback address clients need a key")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="port to listen on")
    min_replicas: Annotated[int, Field(ge=0)] = Field(
        1,
        description="the fewest replicas of a model; with 0 an unused model is unloaded, and loaded at the next "
        "request",
    )
    max_replicas: Positive = Field(1, description="the most replicas of a model; their number follows the load")
    target_requests: PositiveFloat = Field(
        16, description="concurrent requests per replica; with more, another replica is started"
    )
    idle_seconds: PositiveFloat = Field(600, description="seconds of lower load after which a replica is stopped")
    aliases: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Alias] = Field(
        {}, description="further names of models, by name: NAME: MODEL, or a section"
    )
    adapters: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Adapter] = Field(
        {}, description="low-rank adapters to serve, by name; weights of a model that has some cannot be swapped live"
    )
    tool_parser: str | None = Field(
        None,
        description="vLLM's name of the format in which the models write tool calls, such as hermes; unset: tool "
        "calls are not parsed",
    )

    @model_validator(mode="after")
    def _least_to_most(self) -> "Serve":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self

    @model_validator(mode="after")
    def _names_are_given_once(self) -> "Serve":
        models = set(get_args(ModelName))
        for section, names in (("adapters", self.adapters.keys()), ("aliases", self.aliases.keys())):
            if taken := names & models:
                raise ValueError(f"{section}: {', '.join(sorted(taken))} is the name of a model")
            models |= names
        return self
