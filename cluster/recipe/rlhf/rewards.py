"""The recipe's keys below `rlhf.rewards` and `rlhf.environment`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AnyHttpUrl, Field, TypeAdapter, model_validator

from cluster.recipe.base import FunctionName, Hack, Positive, PositiveFloat, Section
from cluster.recipe.functions.signature import ENVIRONMENT, REWARD


def _http_url(text: str) -> str:
    TypeAdapter(AnyHttpUrl).validate_python(text)
    return text


Url = Annotated[str, AfterValidator(_http_url)]


class Reward(Section):
    """A source of rewards: the reward model, a Python function, an HTTP server, or rlhf.environment."""

    kind: Literal["model", "function", "http", "environment"] = Field(
        "model",
        description="the run's reward model, a Python function, an HTTP server, or the reward that the class of "
        "rlhf.environment gives",
    )
    function: Annotated[FunctionName | None, REWARD] = Field(
        None, description="for kind function: module:function(question, answer) -> number"
    )
    url: Url | None = Field(
        None, description="for kind http: address that answers are posted to; actors/rewards/http.py has the protocol"
    )
    weight: Annotated[float, Field(gt=-1000, lt=1000)] = Field(1.0, description="weight in the sum of all rewards")
    timeout_seconds: PositiveFloat = Field(
        60,
        description="for kind function: the most seconds for the reward of one answer; for kind http: for one request",
    )
    attempts: Annotated[int, Field(ge=1, le=10)] = Field(
        2,
        description="for kinds function and http: how often the reward of an answer is asked for before it counts as "
        "failed",
    )
    at_once: Positive = Field(
        8,
        description="for kind function: the most processes of each actor that call a plain function side by side; a "
        "coroutine function gets 64 answers at once in one process",
    )
    accept_hacks: list[Hack] = Field(
        [],
        description="for kinds function and http: hacks, which are answers without effort, that the reward may score "
        "as high as honest answers; RLHF refuses to start if an empty answer or the prompt itself scores so and is not "
        "named here. "
        "`triptych doctor --rewards RECIPE` tries them all",
    )

    @model_validator(mode="after")
    def _every_kind_has_its_own(self) -> "Reward":
        for kind, value in (("function", self.function), ("http", self.url)):
            if self.kind != kind and value is not None:
                given = "function" if kind == "function" else "url"
                raise ValueError(f"{given} is set and kind is {self.kind}: add `kind: {kind}`, or remove {given}")
            if self.kind == kind and value is None:
                needed = "function" if kind == "function" else "url"
                raise ValueError(f"a reward of kind {kind} needs a {needed}")
        return self


class EnvironmentSettings(Section):
    """A class or function that plays the user or a tool, for conversations of several turns."""

    function: Annotated[FunctionName, ENVIRONMENT] = Field(
        description="module:name of a class with reset and step, actors/types.py has its methods; or of a "
        "function(question, answers) -> the next message (a text, or role and content), or None to end"
    )
    turns: Annotated[int, Field(ge=2)] = Field(4, description="the most answers of the policy in a conversation")
    timeout_seconds: PositiveFloat = Field(60, description="the most seconds for one reply")
