"""Conversations as tokens: one rendering for fine-tuning, the reward model, RLHF and serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from actors.model.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, load_tokenizer
from cluster.errors import UserError

# Callers check the length themselves; transformers would warn that the model cannot read so much.
QUIET: dict[str, Any] = {"verbose": False}


def ready_for_chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Adds to a tokenizer, where it lacks them, a chat template with its special tokens, and a padding token."""
    if not tokenizer.chat_template:
        tokenizer.add_special_tokens(
            {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT, "additional_special_tokens": list(SPECIAL_TOKENS[1:4])}
        )
        tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; `loss_mask[i]` says whether the loss counts `token_ids[i]`."""

    token_ids: list[int]
    loss_mask: list[bool]


class Chat:
    """Renders conversations with a tokenizer's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{tokenizer.name_or_path} has no chat template, so it cannot be taught to answer")
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, model: str | Path) -> "Chat":
        """Loads the template that lies with a model."""
        return cls(load_tokenizer(model))

    def conversation(self, messages: Sequence[dict[str, str]]) -> Rendered:
        """Renders a whole conversation, with a mask of the assistant's turns.

        Raises:
            UserError: it has no assistant's turn, or the template cannot write one of its turns.
        """
        self._check_roles(messages)
        rendered = self._marked(messages) if "generation %}" in self._template else self._by_prefix(messages)
        if not any(rendered.loss_mask):
            raise UserError(f"{_named(messages)} has no assistant turn to learn from")
        return rendered

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Renders a conversation up to where the assistant's next turn begins."""
        return self._ids(messages, add_generation_prompt=True)

    def between(self, message: dict[str, str]) -> list[int]:
        """Renders what stands between two turns of the assistant when one message is between them."""
        before: list[dict[str, str]] = [{"role": "user", "content": "a"}]
        start = len(self.prompt(before))
        conversation = [*before, {"role": "assistant", "content": "a"}, message]
        self._check_roles(conversation)
        ids = self.prompt(conversation)
        return ids[start + ids[start:].index(self.end_of_turn_id) + 1 :]

    def answer(self, text: str) -> list[int]:
        """Renders the text of an assistant's turn, with the token that ends it."""
        return [*self.tokenizer.encode(text, add_special_tokens=False, **QUIET), self.end_of_turn_id]

    def _check_roles(self, messages: Sequence[dict[str, str]]) -> None:
        """Refuses a tool's turn that the template would pass over, or make up a token for. ChatML writes any role."""
        has_tool = any(message["role"] == "tool" for message in messages)
        if has_tool and "tool" not in self._template and "<|im_start|>" not in self._template:
            raise UserError(
                f"{_named(messages)} has a tool's turn, and the chat template of {self.tokenizer.name_or_path} has no "
                "place for one"
            )

    def _marked(self, messages: Sequence[dict[str, str]]) -> Rendered:
        """Renders by a template that marks the assistant's turns with `generation`."""
        output = self._applied(messages, return_assistant_tokens_mask=True)
        return Rendered(list(output["input_ids"]), [bool(flag) for flag in output["assistant_masks"]])

    def _by_prefix(self, messages: Sequence[dict[str, str]]) -> Rendered:
        """Renders by a template without `generation` marks: an assistant's turn is what follows its prompt, up to the
        token that ends it."""
        ids = self._ids(messages)
        loss_mask = [False] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if index == 0:
                raise UserError(
                    f"{_named(messages)} has the assistant's turn first, and the chat template of "
                    f"{self.tokenizer.name_or_path} does not say where one begins: remove it, or put a user's before it"
                )
            prompt, turns = self.prompt(messages[:index]), self._ids(messages[: index + 1])
            start = len(prompt)
            if ids[: len(turns)] != turns or turns[:start] != prompt:
                raise UserError("the chat template renders earlier turns differently later on: it cannot be trained on")
            if self.end_of_turn_id not in turns[start:]:
                raise UserError(
                    f"the chat template of {self.tokenizer.name_or_path} does not end the assistant's turn with the "
                    f"tokenizer's eos_token {self.tokenizer.eos_token}: set eos_token to the one that it ends with"
                )
            end = start + turns[start:].index(self.end_of_turn_id) + 1
            loss_mask[start:end] = [True] * (end - start)
        return Rendered(ids, loss_mask)

    def _ids(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
        return list(self._applied(messages, add_generation_prompt=add_generation_prompt)["input_ids"])

    def _applied(self, messages: Sequence[dict[str, str]], **settings: Any) -> Any:
        """Applies the template, which may refuse a system's turn, or two of the user's in a row."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, tokenizer_kwargs=QUIET, **settings
            )
        except (TemplateError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} does not take {_named(messages)}: {reason}"
            ) from error

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else template["default"]

    @property
    def end_of_turn_id(self) -> int:
        """The id of the token that ends the assistant's turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def padding_id(self) -> int:
        """The id of the token that rows are filled up with; its positions are masked everywhere."""
        return int(self.tokenizer.pad_token_id)


def _named(messages: Sequence[dict[str, str]]) -> str:
    return f"a conversation that begins {messages[0]['content'][:40]!r}" if messages else "an empty conversation"
