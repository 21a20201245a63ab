"""The recipe's section on serving: where, how many replicas, and by which other names."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from cluster.recipe.base import Place, Positive, PositiveFloat, Section

Served = Literal["base", "sft", "policy", "reward"]


class Alias(Section):
    """Another name, whose requests one model gets, or several in shares. A model's name stands for all of them."""

    models: Annotated[dict[Served, PositiveFloat], Field(min_length=1)] = Field(description="the share of each")
    shadow: Served | None = Field(None, description="asked the same besides, for its figures; its answers go nowhere")

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, given: Any) -> Any:
        return {"models": {given: 1}} if isinstance(given, str) else given


class Adapter(Section):
    """One more model: a low-rank adapter beside one of the run's models, whose engine it shares."""

    path: Annotated[str, Place.SERVED] = Field(description="a folder in PEFT's format, such as runs/my/sft/adapter")
    model: Literal["base", "sft", "policy"] = Field("base", description="that the adapter was trained on")


class Serve(Section):
    host: str = Field("127.0.0.1", description="address to listen on; on any but loopback keys are asked for")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="to listen on")
    min_replicas: Annotated[int, Field(ge=0)] = Field(
        1, description="of every model; with 0, one that nobody asks ends, and the next request has it started again"
    )
    max_replicas: Positive = Field(1, description="of every model; as many as there is work for, from min_replicas")
    target_requests: PositiveFloat = Field(16, description="at once to one replica: with more, another one is started")
    idle_seconds: PositiveFloat = Field(600, description="of less work, until a replica is ended")
    aliases: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Alias] = Field({}, description="more names of models")
    adapters: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Adapter] = Field(
        {}, description="more models, by their names; a model that has some takes no other weights while it is served"
    )
    tool_parser: str | None = Field(
        None,
        description="vLLM's name for how the models write calls of tools, such as hermes; their template shows tools",
    )

    @model_validator(mode="after")
    def _least_to_most(self) -> "Serve":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self

    @model_validator(mode="after")
    def _names_are_given_once(self) -> "Serve":
        models = set(get_args(Served))
        for section, names in (("adapters", self.adapters.keys()), ("aliases", self.aliases.keys())):
            if taken := names & models:
                raise ValueError(f"{section}: {', '.join(sorted(taken))} is the name of a model")
            models |= names
        return self
