"""What passes between rollout actors, rewards and the learner."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A prompt as the engines take it.

    Attributes:
        id: the prompt's name, unique in a run.
        token_ids: the rendered prompt, generation prompt included.
    """

    id: str
    token_ids: list[int]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy; no top-p or top-k: they would bias importance ratios."""

    count: int
    temperature: float
    max_tokens: int
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One completion. Text is never tokenised again: these ids are what the engine drew.

    Attributes:
        prompt_id: the prompt it answers.
        index: 0 to count - 1 within the prompt.
        token_ids: the completion, end-of-turn token included when the model stopped by itself.
        logprobs: log-probability of every token under the weights that drew it, at the sampling temperature.
        weight_versions: the version of the weights that drew every token.
        finish_reason: "stop" when the model ended its turn, "length" when it was cut.
        text: `token_ids` decoded without special tokens.
    """

    prompt_id: str
    index: int
    token_ids: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    finish_reason: str
    text: str
