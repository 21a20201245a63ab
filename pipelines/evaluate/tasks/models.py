"""Models under evaluation: log-probabilities of continuations, and greedy answers, from engines or over HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.model.chat import Chat
from actors.model.tokenizer import begin_of_text, end_of_text, end_token_ids
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sampling
from cluster.errors import wait_for

# Rows that an engine scores in one call, after each of which progress is reported.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Request:
    """A continuation to score.

    Attributes:
        prompt: a user's message if `chat`, else the beginning of a text, perhaps empty.
        continuation: the text to score.
        chat: whether the prompt is a user's message.
    """

    prompt: str
    continuation: str
    chat: bool


class EvaluatedModel(Protocol):
    """A model that tasks can be run on."""

    @property
    def scores_chats(self) -> bool:
        """Whether continuations can be scored as answers in a chat."""

    @property
    def answers_chats(self) -> bool:
        """Whether it answers in a chat."""

    def log_likelihoods(self, requests: Sequence[Request]) -> list[float | None]:
        """Returns the log-probability of each continuation in nats; None for one that does not fit the context."""

    def answers(self, prompts: Sequence[str], chat: bool, max_tokens: int) -> list[str | None]:
        """Returns a greedy answer to each prompt; None for one that leaves no room for an answer."""


@dataclass
class EngineModel:
    """A model in the engines of a fleet, whose actors share the rows.

    Attributes:
        fleet: rollout actors that hold the model's weights.
        tokenizer: the model's.
        chat: its template; None if it was not trained on conversations.
        context: the most tokens of a row.
        deadline: the longest wait, in seconds.
        ends: the ids of the tokens that end its texts.
        progress: called with the number of requests that were answered since the last call.
    """

    fleet: Fleet
    tokenizer: PreTrainedTokenizerBase
    chat: Chat | None
    context: int
    deadline: float
    ends: frozenset[int]
    progress: Callable[[int], None] = field(default=lambda _: None)

    @classmethod
    def of(cls, fleet: Fleet, folder: Path, context: int, deadline: float, chats: bool) -> "EngineModel":
        """Loads the tokenizer of a model's folder."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = Chat.of(folder) if chats else None
        return cls(fleet, tokenizer, chat, context, deadline, end_token_ids(folder, tokenizer))

    @property
    def scores_chats(self) -> bool:
        return self.chat is not None

    @property
    def answers_chats(self) -> bool:
        return self.chat is not None

    def log_likelihoods(self, requests: Sequence[Request]) -> list[float | None]:
        rows = [self._rows(request) for request in requests]
        fitting = [index for index, own in enumerate(rows) if own is not None]
        pieces = [(index, *piece) for index in fitting for piece in rows[index] or ()]
        nats: list[float | None] = [0.0 if own is not None else None for own in rows]
        for (index, _, _), found in zip(pieces, self._scores([piece[1:] for piece in pieces]), strict=True):
            nats[index] = (nats[index] or 0.0) + found
        return nats

    def answers(self, prompts: Sequence[str], chat: bool, max_tokens: int) -> list[str | None]:
        ids = [self._prompt_ids(prompt, chat) for prompt in prompts]
        fitting = {n: Prompt(f"task-{n}", row) for n, row in enumerate(ids) if len(row) + max_tokens <= self.context}
        samples = self.fleet.generate(list(fitting.values()), Sampling(1, 0.0, max_tokens, 0)) if fitting else {}
        self.progress(len(prompts))
        return [self._text(samples[f"task-{n}"][0].token_ids) if n in fitting else None for n in range(len(ids))]

    def _text(self, token_ids: Sequence[int]) -> str:
        end = next((index for index, token in enumerate(token_ids) if token in self.ends), None)
        return str(self.tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True)).strip()

    def _prompt_ids(self, prompt: str, chat: bool) -> list[int]:
        if chat and self.chat:
            return self.chat.prompt([{"role": "user", "content": prompt}])
        return [*self._prefix, *self._encoded(prompt)]

    @property
    def _prefix(self) -> list[int]:
        """The token from which the first one is predicted: the one that texts begin with, or else the one that ends
        texts."""
        begin = begin_of_text(self.tokenizer)
        return begin or [int(self.tokenizer.convert_tokens_to_ids(end_of_text(self.tokenizer)))]  # type: ignore[arg-type]

    def _rows(self, request: Request) -> list[tuple[list[int], int]] | None:
        """Renders a request as rows of token ids, each with the first token to score.

        A text without a prompt that is longer than the context becomes several rows, each of which begins with the last
        token of the row before: every token is scored once, as in lm-eval's rolling log-likelihood.
        """
        if request.chat and self.chat:
            prompt = self.chat.prompt([{"role": "user", "content": request.prompt}])
            whole = [*prompt, *self._encoded(request.continuation.lstrip())]
            return [(whole, len(prompt))] if len(prompt) < len(whole) <= self.context else None
        prefix = self._prefix
        if not request.prompt:
            ids = [*prefix, *self._encoded(request.continuation)]
            step = self.context - 1
            starts = range(0, len(ids) - 1, step)
            return [(ids[start : start + self.context], 1 if start else len(prefix)) for start in starts] or None
        # The space between prompt and continuation belongs to the continuation, as in lm-eval.
        trimmed = request.prompt.rstrip()
        prompt = self._encoded(trimmed)
        whole = self._encoded(trimmed + request.prompt[len(trimmed) :] + request.continuation)
        row = [*prefix, *whole]
        return [(row, len(prefix) + len(prompt))] if len(prompt) < len(whole) and len(row) <= self.context else None

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def _scores(self, rows: Sequence[tuple[list[int], int]]) -> list[float]:
        """Sums the log-probabilities of each row from its start on; long rows are scored next to long ones."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
        actors, found = self.fleet.handles(), [0.0] * len(rows)
        for begin in range(0, len(order), ROWS_AT_ONCE * len(actors)):
            part = order[begin : begin + ROWS_AT_ONCE * len(actors)]
            shares = [part[number :: len(actors)] for number in range(min(len(actors), len(part)))]
            refs = [
                actor.score.remote([rows[index][0] for index in share], [rows[index][1] for index in share])
                for actor, share in zip(actors, shares, strict=False)
            ]
            for share, scores in zip(shares, wait_for(refs, self.deadline, "the scores of tasks"), strict=True):
                for index, score in zip(share, scores, strict=True):
                    found[index] = sum(score)
            self.progress(len(part))
        return found
