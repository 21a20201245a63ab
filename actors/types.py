"""Defines the data types that pass between rollout actors, rewards and the learner: prompts, samples and their
identities, and a worker's rows of a batch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import xxhash

# The epoch of prompts that are drawn outside of training.
NO_EPOCH = -1


@dataclass(frozen=True)
class PromptTurn:
    """Identifies one use of a prompt.

    Attributes:
        epoch: the pass over the prompts, from 0, or NO_EPOCH.
        prompt: `Prompt.id`.
    """

    epoch: int
    prompt: str

    def __str__(self) -> str:
        return self.prompt if self.epoch == NO_EPOCH else f"{self.epoch}:{self.prompt}"


@dataclass(frozen=True)
class RolloutId:
    """Identifies one completion of a prompt.

    Attributes:
        epoch: the pass over the prompts, from 0, or NO_EPOCH.
        prompt: `Prompt.id`.
        sample: 0 to count - 1 within the prompt's turn.
    """

    epoch: int
    prompt: str
    sample: int

    @property
    def turn(self) -> PromptTurn:
        """The turn of the prompt that this is a sample of."""
        return PromptTurn(self.epoch, self.prompt)


@dataclass(frozen=True)
class Failure:
    """The absence of a reward for a completion. It is never counted as a reward of 0.

    Attributes:
        reason: one line that names the function, server or model and the answer, and says what went wrong.
    """

    reason: str


# The reward of a completion, or why it has none.
Verdict = float | Failure
# The verdicts on some prompts' samples: [prompts][samples].
Scores = list[list[Verdict]]


def prompt_id(name: str) -> str:
    """Returns the id of a prompt in RLHF: the first 16 hexadecimal digits of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prompt:
    """A prompt as engines take it.

    Attributes:
        id: identifies the prompt within a run; in RLHF `prompt_id` of its name.
        token_ids: the rendered prompt, generation prompt included.
        name: the full name, for people: of a prompt from a file, the path and the conversation. It decides the order
            of prompts in an epoch and seeds draws, so that neither depends on how ids are made. By default the id.
        epoch: the pass over the prompts in which completions are drawn, or NO_EPOCH.
    """

    id: str
    token_ids: list[int]
    name: str = ""
    epoch: int = NO_EPOCH

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.id)

    @property
    def turn(self) -> PromptTurn:
        """The use of the prompt in this epoch."""
        return PromptTurn(self.epoch, self.id)

    @property
    def label(self) -> str:
        """Epoch and name, for messages."""
        return str(PromptTurn(self.epoch, self.name))

    def draw_seed(self, seed: int) -> int:
        """Returns a seed of 62 bits for this prompt's completions, from a seed, the epoch and the name."""
        return xxhash.xxh3_64_intdigest(f"{seed}:{self.label}".encode()) >> 2


@dataclass(frozen=True)
class RewardInput:
    """The parts of a prompt that a reward function or an environment gets.

    Attributes:
        messages: the conversation up to the answer, each with `role` and `content`; with an environment, its earlier
            turns too.
        metadata: the other fields of the prompt's row, such as the right answer.
        raw_answer: the answer with its special tokens, such as [TOOL_CALLS]; empty where there is no answer yet.
    """

    messages: list[dict[str, Any]]
    metadata: Mapping[str, str]
    raw_answer: str = ""

    @property
    def text(self) -> str:
        """The conversation for people: the user's message alone, or all turns with their roles if there are several."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling of completions. There is no top-p or top-k: they bias importance ratios.

    Attributes:
        count: completions of each prompt.
        temperature: divides the logits; 0 is greedy.
        max_tokens: of a completion; with an environment, of all its turns together.
        seed: makes draws repeatable, independent of the actor and the batch; None draws afresh.
    """

    count: int
    temperature: float
    max_tokens: int
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One completion. Its text is never tokenized again: the ids are those that the engine drew.

    Attributes:
        id: the rollout.
        token_ids: the tokens after the prompt, end-of-turn token included when the model stopped by itself.
        logprobs: log-probability of every token under the weights that drew it, at the sampling temperature.
        weight_versions: the version of the weights that drew every token; of a sample that was given up, the one that
            it was begun with.
        finish_reason: "stop" when the model ended its turn, "length" when it was cut, "abort" when it was given up.
        text: the last turn, decoded without special tokens.
        loss_mask: whether the policy drew each token, by default all. Others, between the turns of a conversation,
            have the log-probability 0.
        raw_text: the last turn with its special tokens, but for the one that ends it.
        history: the turns between the prompt and the last one, as messages.
        reward: the environment's reward of the conversation; None if it gives none.
        failure: why the sample gets no reward: the environment could not go on with the conversation, or no engine
            survived drawing it; or empty.
    """

    id: RolloutId
    token_ids: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    finish_reason: str
    text: str
    loss_mask: list[bool] = field(default_factory=list)
    raw_text: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    reward: float | None = None
    failure: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss_mask", self.loss_mask or [True] * len(self.token_ids))

    @property
    def given_up(self) -> bool:
        """Whether it has no tokens because actor after actor died while drawing its prompt."""
        return not self.token_ids

    @property
    def length(self) -> int:
        """The number of tokens that the policy drew."""
        return sum(self.loss_mask)

    @property
    def repetition(self) -> float:
        """The share of the policy's runs of three tokens that stood earlier in the completion; 0 if it has no run."""
        ids, mask = self.token_ids, self.loss_mask
        runs = [tuple(ids[end - 3 : end]) for end in range(3, len(ids) + 1) if all(mask[end - 3 : end])]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class Answer:
    """One turn of the policy in a conversation.

    Attributes:
        text: decoded without special tokens.
        raw_text: with them, such as [TOOL_CALLS], but for the one that ends the turn.
        finished: whether the policy ended the turn; else it was cut.
    """

    text: str
    raw_text: str
    finished: bool


@dataclass(frozen=True)
class Trajectory:
    """A conversation as an environment sees it after each answer.

    Attributes:
        question: the prompt.
        messages: all turns, from the prompt's first to the last answer.
        answers: the policy's turns, at least one.
        token_ids: all tokens after the prompt.
        loss_mask: which of them the policy drew.
    """

    question: RewardInput
    messages: list[dict[str, Any]]
    answers: list[Answer]
    token_ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class Reply:
    """An environment's reply to an answer.

    Attributes:
        messages: the next turns, each with `role` and `content`; none ends the conversation.
        reward: is added to the reward of the conversation; None adds none.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    reward: float | None = None


class Environment(Protocol):
    """The other side of one conversation: a user, or tools. One object is made for each, without arguments.

    Many conversations go on at once in one event loop: slow work must be awaited.

    Attributes:
        tools: declarations of tools as JSON schema, which the chat template shows to the policy.
    """

    tools: Sequence[Mapping[str, Any]] = ()

    async def reset(self, question: RewardInput) -> None:
        """Begins the conversation."""

    async def step(self, trajectory: Trajectory) -> Reply:
        """Answers the policy's last turn. To the last answer that there may be, and to one that was cut, only the
        reward of the reply counts."""


def reward_scale_file(model: Path) -> Path:
    """Returns the file with the mean and deviation of a reward model's scores; earlier versions spelled it with s."""
    earlier = model / "normalisation.json"
    return earlier if earlier.exists() else model / "normalization.json"


@dataclass(frozen=True)
class OwnRows:
    """One worker's rows of a global batch.

    Attributes:
        rows: the rows; where the worker has none, one that does not count, to compute in step with the others.
        own: the number of rows that count.
        together: the rows that all workers have together.
    """

    rows: pa.Table
    own: int
    together: int
