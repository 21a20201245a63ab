"""The recipe's section `serve`: address, number of replicas, aliases and adapters of the served models, and the story
page."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from cluster.recipe.base import NAME_PATTERN, FunctionName, PathKind, Positive, PositiveFloat, Section
from cluster.recipe.functions.signature import REWARD
from cluster.recipe.rlhf.regularization import Stop

ModelName = Literal["base", "sft", "policy", "reward"]
# Whose prompts the server stores.
RecordMode = Literal["off", "ask", "keys", "all"]
# The model of the story page: the policy that the last visitor's rankings made.
VISITOR = "visitor"
# The model of the loop's trials: a new policy that answers a share of the requests.
CANARY = "canary"


# YAML 1.1 reads a plain `off` as false.
Record = Annotated[RecordMode, BeforeValidator(lambda value: "off" if value is False else value)]


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


class Tls(Section):
    """Encryption of HTTP."""

    certificate: Annotated[str, PathKind.SERVED] = Field(description="file of the certificate and its chain, in PEM")
    key: Annotated[str, PathKind.SERVED] = Field(description="file of the certificate's private key, in PEM")


class NgramSpeculation(Section):
    """Speculative decoding by looking up in the prompt how the last tokens went on there (Saxena 2023)."""

    num_speculative_tokens: Positive = Field(3, description="tokens that are guessed at a time")
    prompt_lookup_max: Positive = Field(4, description="the most last tokens that are looked up")
    prompt_lookup_min: Positive = Field(2, description="the fewest last tokens that are looked up")

    @model_validator(mode="after")
    def _least_to_most(self) -> "NgramSpeculation":
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError("prompt_lookup_min is more than prompt_lookup_max")
        return self


class Engine(Section):
    """Settings of the vLLM engines, under vLLM's own names."""

    max_model_len: Positive | None = Field(
        None, description="the most tokens of a request, prompt and answer together; unset: model.context"
    )
    enable_prefix_caching: bool = Field(True, description="whether prompts that begin alike are computed once")
    quantization: str | None = Field(
        None, description="vLLM's name of a method to quantize the weights, such as fp8; unset: as they are"
    )
    tensor_parallel_size: Positive | None = Field(
        None, description="GPUs that share each model; unset: as many as the plan gives a replica"
    )
    speculative_config: NgramSpeculation | None = Field(
        None, description="speculative decoding by n-grams of the prompt; unset: none"
    )


class Story(Section):
    """The story page, which shows the three training steps. A visitor ranks answers, and a reward model and a policy
    are trained on these rankings alone, beside the run's own models."""

    sentences: Annotated[list[str], Field(min_length=1)] = Field(description="sentences to try, shown as buttons")
    questions: Annotated[list[str], Field(min_length=1, max_length=8)] = Field(
        description="questions that the visitor's policy answers again and again while it is trained"
    )
    rankings: Annotated[int, Field(ge=4, le=100)] = Field(20, description="prompts that a visitor is asked to rank")
    epochs: Positive = Field(8, description="passes of the visitor's reward model over the rankings")
    steps: Positive = Field(16, description="RLHF steps of the visitor's policy")
    learning_rate: PositiveFloat | None = Field(
        None, description="learning rate of the visitor's policy; unset: rlhf.learning_rate"
    )
    promote_every: Positive = Field(2, description="RLHF steps between two updates of the served visitor's policy")
    gameable: Annotated[FunctionName | None, REWARD] = Field(
        None,
        description="module:function(question, answer) -> number, a reward that can be gamed, which the page offers in "
        "place of the visitor's reward model; unset: none",
    )
    stop: Stop = Field(
        Stop(max_kl=2.5, max_repetition=0.3),
        description="limits on the visitor's policy, beyond which its training ends",
    )


class Serve(Section):
    """The HTTP server: its address, its replicas, and further names and adapters of its models."""

    host: str = Field("127.0.0.1", description="address to listen on; on any but a loopback address clients need a key")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="port to listen on")
    gateways: Positive = Field(
        1,
        description="processes that take requests, on as many nodes, at `port`; if there are more than nodes, the "
        "others listen at `port` + 1 and so on",
    )
    tls: Tls | None = Field(None, description="encryption of HTTP; unset: none, and keys travel in plain text")
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
    aliases: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Alias] = Field(
        {}, description="further names of models, by name: NAME: MODEL, or a section"
    )
    adapters: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Adapter] = Field(
        {}, description="low-rank adapters to serve, by name; weights of a model that has some cannot be swapped live"
    )
    engine: Engine = Field(Engine(), description="settings of the vLLM engines")
    tool_parser: str | None = Field(
        "auto",
        description="vLLM's name of the format in which the models write tool calls, by themselves or forced; auto: "
        "told from the chat template; null: they call no tools",
    )
    reasoning_parser: str | None = Field(
        None,
        description="vLLM's name of the format in which the models write their reasoning, such as qwen3, which is then "
        "apart from the answer; unset: they do not reason",
    )
    people_per_prompt: Positive = Field(1, description="how many people rank each prompt on the page /label")
    record: Record = Field(
        "off",
        description="whether prompts of live traffic are stored, with personal data replaced. "
        "off: none; ask: those of people who switch it on in the chat page; keys: those sent with keys that "
        "were made with --record; all: all. A request with the header X-Triptych-Record: no is never stored",
    )
    record_days: PositiveFloat = Field(30, description="days after which a stored prompt is deleted")
    story: Story | None = Field(
        None, description="the page /story for people who have never trained a model; unset: none"
    )

    @model_validator(mode="after")
    def _least_to_most(self) -> "Serve":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self

    @model_validator(mode="after")
    def _names_are_given_once(self) -> "Serve":
        models = {*get_args(ModelName), VISITOR, CANARY}
        for section, names in (("adapters", self.adapters.keys()), ("aliases", self.aliases.keys())):
            if taken := names & models:
                raise ValueError(f"{section}: {', '.join(sorted(taken))} is the name of a model")
            models |= names
        return self
