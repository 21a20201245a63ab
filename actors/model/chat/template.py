"""A tokenizer's chat template: the texts and tokens that it writes, and the token that ends the assistant's turns."""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from actors.model.chat.turn import reasoning_of
from actors.model.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    END_OF_TURN,
    REASONING,
    REASONING_FIELDS,
    SPECIAL_TOKENS,
    begin_of_text,
    end_of_text,
    end_token_ids,
    load_tokenizer,
)
from cluster.errors import UserError

# Callers check the length themselves; transformers would warn that the model cannot read so much.
QUIET: dict[str, Any] = {"verbose": False}
# An answer that no template changes, to find the tokens that a template writes behind one.
_PROBE = "qzjx"

Messages = Sequence[dict[str, Any]]


def ready_for_chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Adds to a tokenizer, where it lacks them, a chat template with its special tokens, and a padding token.

    The padding token becomes the one that ends texts: documents are packed with it.
    """
    end = end_of_text(tokenizer) if tokenizer.eos_token else END_OF_TEXT
    if not tokenizer.chat_template:
        begin = "{{ bos_token }}" if begin_of_text(tokenizer) else ""
        tokenizer.add_special_tokens(
            {"eos_token": END_OF_TURN, "pad_token": end, "additional_special_tokens": list(SPECIAL_TOKENS[1:4])}
        )
        tokenizer.chat_template = begin + CHAT_TEMPLATE
    tokenizer.pad_token = end
    return tokenizer


def unlearned_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of the tokens that only conversations have: those of Triptych's own template, which no base
    model has seen. A template that a model brings is taken to have been learned."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template.endswith(CHAT_TEMPLATE):
        return []
    return [cast(int, tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS[1:]]


class ChatTemplate:
    """Applies a tokenizer's chat template.

    Attributes:
        tools: declarations of tools that prompts show unless they have their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any] = ()) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{tokenizer.name_or_path} has no chat template, so it cannot be taught to answer")
        self.tokenizer, self.tools = tokenizer, list(tools)
        # The text of the token that the template ends the assistant's turn with, by template and eos_token.
        self._ends: dict[tuple[str, str], str | None] = {}
        self._parts: dict[str, bool] = {}

    @classmethod
    def of(cls, model: str | Path) -> Self:
        """Loads the template that lies with a model."""
        return cls(load_tokenizer(model))

    def _prepared(self, messages: Messages) -> list[dict[str, Any]]:
        """Renames the developer's role and the field of the reasoning where the template has other names for them."""
        # As a field, such as message.thinking: templates also write of reasoning.
        fields = [name for name in REASONING_FIELDS if re.search(rf"""[.'"]{name}\b""", self._template)]
        prepared = []
        for message in messages:
            if message["role"] == "developer" and "developer" not in self._template:
                message = {**message, "role": "system"}
            if REASONING in message and fields and fields[0] != REASONING:
                message = {fields[0] if name == REASONING else name: value for name, value in message.items()}
            prepared.append(message)
        return prepared

    def _check_places(self, messages: Messages, tools: Sequence[Any] | None, turns: Sequence[int]) -> None:
        """Refuses messages and tools that the template would ignore, or for which it would make up a token. ChatML
        writes any role."""
        template, missing = self._template, None
        chatml = "<|im_start|>" in template
        if any(message["role"] == "tool" for message in messages) and "tool" not in template and not chatml:
            missing = "a tool's turn"
        elif tools and "tools" not in template:
            missing = "tools"
        elif any(message.get("tool_calls") for message in messages) and "tool_calls" not in template:
            missing = "tool_calls"
        elif any(reasoning_of(messages[i]) for i in turns) and not re.search("think|reason", template):
            missing = "reasoning_content"
        if missing:
            raise UserError(
                f"{described(messages)} has {missing}, and the chat template of {self.tokenizer.name_or_path} has no "
                "place for it"
            )

    def _text(self, messages: Messages, tools: Sequence[Any] | None = None, **settings: Any) -> str:
        return str(self._applied(messages, tools, tokenize=False, **settings))

    def _encoded(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False, **QUIET))
        except (TypeError, UnicodeError) as error:
            half = next((place for place, one in enumerate(text) if "\ud800" <= one <= "\udfff"), 0)
            around = text[max(0, half - 40) : half + 1]
            raise UserError(f"a text has half of a character, which no token stands for, at {around!r}") from error

    def _applied(self, messages: Messages, tools: Sequence[Any] | None, **settings: Any) -> Any:
        """Applies the template, which may refuse a system's turn, or two of the user's in a row."""
        if settings["tokenize"]:
            settings["tokenizer_kwargs"] = QUIET
        if self._takes_parts:
            messages = [{**message, "content": _parts(message["content"])} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(list(messages), tools=list(tools or ()) or None, **settings)
        except (TemplateError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} does not take {described(messages)}: {reason}"
            ) from error

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else template["default"]

    @property
    def _end_of_turn(self) -> str:
        """The text of the token that ends the assistant's turn: the first special one that the template writes behind
        an answer, since eos_token may end documents (Gemma, Llama 3 base); the eos_token where it writes none (GLM)."""
        return self._written_end or str(self.tokenizer.eos_token)

    @property
    def _writes_end(self) -> bool:
        return self._written_end is not None

    @property
    def _written_end(self) -> str | None:
        template = (self._template, str(self.tokenizer.eos_token))
        if template not in self._ends:
            self._ends[template] = self._find_end()
        return self._ends[template]

    def _find_end(self) -> str | None:
        """Returns the first special token behind an answer; of several in a row, behind an answer that is followed by
        another question too, the eos_token if it is one of them (Command A)."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        text = self._text(turns)
        if _PROBE not in text:
            raise UserError(f"the chat template of {self.tokenizer.name_or_path} does not write the assistant's turns")
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        found = [token for token in self._encoded(text.rpartition(_PROBE)[2]) if token in special]
        if not found:
            return None
        followed = self._encoded(self._text([*turns, turns[0]]).rpartition(_PROBE)[2]) if len(found) > 1 else []
        run = list(takewhile(special.__contains__, followed))
        end = self.tokenizer.eos_token_id
        return str(self.tokenizer.convert_ids_to_tokens(end if end in run and end in found else found[0]))

    @property
    def _takes_parts(self) -> bool:
        """Whether the template passes over content that is a text, and writes it as a list of parts (vision models)."""
        template = self._template
        if template not in self._parts:
            written = [self._writes(content) for content in (_PROBE, _parts(_PROBE))]
            self._parts[template] = written == [False, True]
        return self._parts[template]

    def _writes(self, content: Any) -> bool:
        turns = [{"role": "user", "content": content}]
        try:
            return _PROBE in str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except (TemplateError, ValueError, TypeError):
            return False

    @property
    def end_of_turn_id(self) -> int:
        """The id of the token that ends the assistant's turn."""
        return cast(int, self.tokenizer.convert_tokens_to_ids(self._end_of_turn))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids of all tokens that end an answer: `end_of_turn_id`, and those of the model's folder."""
        return end_token_ids(self.tokenizer.name_or_path, self.tokenizer) | {self.end_of_turn_id}

    @property
    def padding_id(self) -> int:
        """The id of the token that rows are filled up with; its positions are masked everywhere."""
        return int(self.tokenizer.pad_token_id)


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def described(messages: Messages) -> str:
    """Names a conversation in messages, by its beginning."""
    return f"a conversation that begins {messages[0]['content'][:40]!r}" if messages else "an empty conversation"
