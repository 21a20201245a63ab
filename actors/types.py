"""What passes between rollout actors, rewards and the learner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
class RewardInput:
    """What a reward function sees of a prompt.

    Attributes:
        messages: the conversation up to the answer.
        metadata: what else is known of the prompt, such as the right answer.
    """

    messages: list[dict[str, str]]
    metadata: Mapping[str, str]


def shown(question: RewardInput) -> str:
    """As people read it: what the user said, or the whole conversation where it is longer."""
    if len(question.messages) == 1:
        return question.messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in question.messages)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. A temperature of 0 is greedy. No top-p or top-k: they bias importance ratios."""

    count: int
    temperature: float
    max_tokens: int
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One completion. Text is never tokenized again: these ids are what the engine drew.

    Attributes:
        prompt_id: the prompt it answers.
        index: 0 to count - 1 within the prompt.
        token_ids: what followed the prompt, end-of-turn token included when the model stopped by itself.
        logprobs: log-probability of every token under the weights that drew it, at the sampling temperature.
        weight_versions: the version of the weights that drew every token.
        finish_reason: "stop" when the model ended its turn, "length" when it was cut.
        text: the last turn, decoded without special tokens.
        drawn: in a conversation of several turns, which tokens the policy drew; empty where it drew all. Others have
            the log-probability 0.
    """

    prompt_id: str
    index: int
    token_ids: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    finish_reason: str
    text: str
    drawn: list[bool] = field(default_factory=list)

    @property
    def mask(self) -> list[bool]:
        """Which tokens the policy drew."""
        return self.drawn or [True] * len(self.token_ids)

    @property
    def length(self) -> int:
        """How many tokens the policy drew."""
        return sum(self.mask)

    @property
    def repetition(self) -> float:
        """Share of the runs of three tokens that the policy drew which stood in the answer before; 0 where there are
        none."""
        ids, mask = self.token_ids, self.mask
        runs = [tuple(ids[end - 3 : end]) for end in range(3, len(ids) + 1) if all(mask[end - 3 : end])]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


def reward_scale_file(model: Path) -> Path:
    """The file with the mean and deviation of a reward model's scores; folders of earlier versions spell it with s."""
    earlier = model / "normalisation.json"
    return earlier if earlier.exists() else model / "normalization.json"
