"""The chat template: one rendering for fine-tuning, reward, RLHF and serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cluster.failures import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

# `generation` marks what is trained: the assistant's words and the token that ends its turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; `trained[i]` says whether the loss counts `token_ids[i]`."""

    token_ids: list[int]
    trained: list[bool]


class Chat:
    """Renders conversations with a tokenizer's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{tokenizer.name_or_path} has no chat template, so it cannot be taught to answer")
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, model: str | Path) -> "Chat":
        """The template that lies with a model."""
        return cls(AutoTokenizer.from_pretrained(str(model)))

    def conversation(self, messages: Sequence[dict[str, str]]) -> Rendered:
        """A whole conversation.

        Raises:
            UserError: nothing in it would be trained.
        """
        output: Any = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        trained = [bool(flag) for flag in output["assistant_masks"]]
        if not any(trained):
            raise UserError(
                f"a conversation that begins {messages[0]['content'][:40]!r} has no assistant turn to learn from"
            )
        return Rendered(list(output["input_ids"]), trained)

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens up to where the assistant begins to speak."""
        output: Any = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, add_generation_prompt=True
        )
        return list(output["input_ids"])

    @property
    def end_of_turn_id(self) -> int:
        """The token that ends the assistant's turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def padding_id(self) -> int:
        """The token that fills rows; its positions are masked everywhere."""
        return int(self.tokenizer.pad_token_id)
