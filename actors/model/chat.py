"""Conversations as tokens: one rendering for fine-tuning, the reward model, RLHF and serving."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

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
THINK, END_THINK = "<think>", "</think>"
# What a prompt begins the assistant's turn with where it is not to think: two marks, such as <think></think>.
EMPTY_THOUGHT = re.compile(r"\s*<[^<>\s]+>\s*\w*\s*<[^<>\s]+>\s*")
# An answer that no template changes, to find what the template writes behind one.
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


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; `loss_mask[i]` says whether the loss counts `token_ids[i]`."""

    token_ids: list[int]
    loss_mask: list[bool]


class Chat:
    """Renders conversations with a tokenizer's own chat template.

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
    def of(cls, model: str | Path) -> "Chat":
        """Loads the template that lies with a model."""
        return cls(load_tokenizer(model))

    def conversation(self, messages: Messages) -> Rendered:
        """Renders a conversation up to its last assistant's turn; the errors are those of `training_rows`."""
        return self.training_rows(messages)[-1]

    def training_rows(
        self, messages: Messages, tools: Sequence[Any] | None = None, untrained: Collection[int] = ()
    ) -> list[Rendered]:
        """Renders a conversation for training, with a mask of the assistant's turns.

        The tokens before each trained turn are those that the model is served when it is asked for that turn. A
        template that writes earlier turns differently later on, such as without their reasoning, therefore gives
        several rows: one for each turn that does not continue the row before.

        Args:
            messages: turns of role and content, and what else the template reads.
            tools: declarations of the tools that the assistant may call.
            untrained: indices of the assistant's turns that are context alone.

        Raises:
            UserError: there is no turn to train on, or the template cannot write a turn, or would leave out a part.
        """
        messages = self._prepared(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i not in untrained]
        if not turns:
            raise UserError(f"{_named(messages)} has no assistant turn to learn from")
        self._check_places(messages, tools, turns)
        if "generation %}" in self._template:
            return [self._marked(messages, tools, turns)]
        return self._by_turn(messages, tools, turns)

    def prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """Renders a conversation up to where the assistant's next turn begins."""
        tools = tools or self.tools
        if tools:
            self._check_places(messages, tools, [])
        return self._encoded(self._text(self._prepared(messages), tools, add_generation_prompt=True))

    def between(self, messages: Messages) -> list[int]:
        """Renders what stands between two turns of the assistant when these messages are between them."""
        before: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
        start = len(self.prompt(before))
        conversation = [*before, {"role": "assistant", "content": "a"}, *messages]
        self._check_places(conversation, None, [])
        ids = self.prompt(conversation)
        if self.end_of_turn_id not in ids[start:]:
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} does not end the assistant's turns: "
                "environments of several turns cannot be played with it"
            )
        return ids[start + ids[start:].index(self.end_of_turn_id) + 1 :]

    def answer(self, text: str) -> list[int]:
        """Renders the text of an assistant's turn, with the token that ends it."""
        return [*self._encoded(text), self.end_of_turn_id]

    def _prepared(self, messages: Messages) -> list[dict[str, Any]]:
        """Renames what the template has another name for: the developer's role, and the field of the reasoning."""
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
        """Refuses what the template would pass over, or make up a token for. ChatML writes any role."""
        template, missing = self._template, None
        chatml = "<|im_start|>" in template
        if any(message["role"] == "tool" for message in messages) and "tool" not in template and not chatml:
            missing = "a tool's turn"
        elif tools and "tools" not in template:
            missing = "tools"
        elif any(message.get("tool_calls") for message in messages) and "tool_calls" not in template:
            missing = "tool_calls"
        elif any(_reasoning(messages[i]) for i in turns) and not re.search("think|reason", template):
            missing = "reasoning_content"
        if missing:
            raise UserError(
                f"{_named(messages)} has {missing}, and the chat template of {self.tokenizer.name_or_path} has no "
                "place for it"
            )

    def _marked(self, messages: Messages, tools: Sequence[Any] | None, turns: Sequence[int]) -> Rendered:
        """Renders by a template that marks the assistant's turns with `generation`."""
        output = self._applied(messages, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(output["input_ids"]), [bool(flag) for flag in output["assistant_masks"]]
        starts = [i for i, flag in enumerate(mask) if flag and (i == 0 or not mask[i - 1])]
        ends = [i + 1 for i, flag in enumerate(mask) if flag and (i + 1 == len(mask) or not mask[i + 1])]
        everyone = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(starts) != len(everyone):
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} marks {len(starts)} of the {len(everyone)} "
                f"assistant turns of {_named(messages)}"
            )
        for number, start, end in zip(everyone, starts, ends, strict=True):
            if number not in turns:
                mask[start:end] = [False] * (end - start)
            elif self.end_of_turn_id not in ids[start:end]:
                raise UserError(
                    f"the chat template of {self.tokenizer.name_or_path} marks the assistant's turn without the token "
                    f"that ends it, {self._end_of_turn}: the model would never learn to stop"
                )
            elif not self._template.endswith(CHAT_TEMPLATE):
                text = self.tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
                if lost := _lost(messages[number], str(text)):
                    raise UserError(self._leaves_out(messages, lost))
        return Rendered(ids, mask)

    def _by_turn(self, messages: Messages, tools: Sequence[Any] | None, turns: Sequence[int]) -> list[Rendered]:
        """Renders by a template without marks: a turn is what follows its prompt, up to the token that ends it."""
        rows: list[tuple[str, list[tuple[int, int]]]] = []
        for turn in turns:
            if turn == 0:
                raise UserError(
                    f"{_named(messages)} has the assistant's turn first, and the chat template of "
                    f"{self.tokenizer.name_or_path} does not say where one begins: remove it, or put a user's before it"
                )
            prompt = self._text(messages[:turn], tools, add_generation_prompt=True)
            text = prompt + self._target(messages, tools, turn, prompt)
            span = (len(prompt), len(text))
            if rows and prompt.startswith(rows[-1][0]):
                rows[-1] = (text, [*rows[-1][1], span])
            else:
                rows.append((text, [span]))
        whole = self._text(messages, tools)
        if whole.startswith(rows[-1][0]):
            rows[-1] = (whole, rows[-1][1])
        return [self._tokenized(messages, text, spans) for text, spans in rows]

    def _target(self, messages: Messages, tools: Sequence[Any] | None, turn: int, prompt: str) -> str:
        """Returns what the model has to write after `prompt`, with the token that ends it.

        Where the template leaves a part out once the turn is over (the reasoning), or writes another beginning than
        the prompt for it, that is the turn's own text.
        """
        message, end = messages[turn], self._end_of_turn
        text = self._text(messages[: turn + 1], tools)
        continues = text.startswith(prompt)
        written = text[len(prompt) :] if continues else self._continuation(messages, tools, turn, prompt, text)
        # A call may end with a token of its own (gpt-oss), at which the model stops too.
        others = map(str, self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids)))
        written_end = next((some for some in (end, *others) if some in written), None)
        if written_end:
            written = written[: written.rindex(written_end) + len(written_end)]
        elif continues:
            if self._writes_end:
                raise UserError(
                    f"the chat template of {self.tokenizer.name_or_path} does not end the assistant's turn of "
                    f"{_named(messages)} with {end}, nor with another eos_token_id of generation_config.json"
                )
            # What comes next ends the turn for whoever reads it; the model, which writes no such thing, has to stop.
            written = written.rstrip() + end
        lost = _lost(message, written)
        if written and not lost:
            return written
        if END_THINK in self._template and not message.get("tool_calls"):
            return _with_reasoning(message, prompt, str(message["content"])) + end
        # Calls stand behind a thought that the template closes, and the prompt has opened (Nemotron 3).
        calls = text.rpartition(END_THINK)[2].rpartition(end)[0]
        unthinking = {name: value for name, value in message.items() if name not in REASONING_FIELDS}
        if prompt.rstrip().endswith(THINK) and calls and not _lost(unthinking, calls):
            return _with_reasoning(message, prompt, calls) + end
        if written:
            raise UserError(self._leaves_out(messages, lost))
        raise UserError(
            f"the chat template of {self.tokenizer.name_or_path} begins the assistant's turn of {_named(messages)} "
            "otherwise than its prompt: it cannot be trained on"
        )

    def _continuation(self, messages: Messages, tools: Sequence[Any] | None, turn: int, prompt: str, text: str) -> str:
        """Returns what follows the prompt's end in `text`, which has the turn in it and begins otherwise.

        Returns:
            It, where the prompt begins the turn with an empty thought that is left out of turns that are over (Gemma
            4), or where earlier messages alone are written otherwise, such as the system's in the last of the user's
            turns (Mistral); else nothing.
        """
        common = next(place for place, (a, b) in enumerate(zip(prompt, f"{text}\0", strict=False)) if a != b)
        if mark := re.search(r"<[^<>\s]*$", prompt[:common]):
            common = mark.start()
        if common >= len(self._text(messages[:turn], tools)) and EMPTY_THOUGHT.fullmatch(prompt[common:]):
            return text[common:]
        before = str(messages[turn - 1]["content"])
        if not before or before not in prompt:
            return ""
        tail = prompt[prompt.rindex(before) :]
        return text[text.rindex(tail) + len(tail) :] if text.count(tail) == prompt.count(tail) else ""

    def _tokenized(self, messages: Messages, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        """Encodes a row, and marks the tokens of the spans of characters that are trained."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **QUIET)
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        mask = [any(start <= begin and end <= stop for start, stop in spans) for begin, end in offsets]
        prompt = self._encoded(text[: spans[-1][0]])
        if ids[: len(prompt)] != prompt or any(
            encoding.char_to_token(start - 1) == encoding.char_to_token(start) for start, _ in spans
        ):
            raise UserError(
                f"{_named(messages)}: a token of {self.tokenizer.name_or_path} would span the beginning of the "
                "assistant's turn, which is never so when the model is asked for it"
            )
        return Rendered(ids, mask)

    def _leaves_out(self, messages: Messages, part: str) -> str:
        return f"the chat template of {self.tokenizer.name_or_path} leaves out {part} of {_named(messages)}"

    def _text(self, messages: Messages, tools: Sequence[Any] | None = None, **settings: Any) -> str:
        return str(self._applied(messages, tools, tokenize=False, **settings))

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, **QUIET))

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
                f"the chat template of {self.tokenizer.name_or_path} does not take {_named(messages)}: {reason}"
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


def _reasoning(message: dict[str, Any]) -> str:
    return next((str(message[name]) for name in REASONING_FIELDS if message.get(name)), "")


def _lost(message: dict[str, Any], written: str) -> str:
    """Names the part of an assistant's turn that is not in its text; the template may have changed white space."""
    found = _squeezed(written)
    if _squeezed(_reasoning(message)) not in found:
        return "the reasoning"
    if any(_squeezed(word) not in found for call in message.get("tool_calls") or () for word in _words(call)):
        return "the tool_calls"
    return "" if _squeezed(message["content"]) in found else "a part of the assistant's turn"


def _words(call: Any) -> Iterator[str]:
    """Yields the names and texts of a tool call that every notation writes alike."""
    function = call.get("function", call)
    yield str(function["name"])
    waiting = [function.get("arguments")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.isascii() and value.isalnum():
            yield value


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _with_reasoning(message: dict[str, Any], prompt: str, content: str) -> str:
    """Returns an assistant's turn as a model writes it that thinks between <think> and </think>, before its content."""
    reasoning = _reasoning(message)
    if not reasoning and END_THINK in content:
        reasoning, _, content = content.partition(END_THINK)
        reasoning = reasoning.removeprefix(THINK)
    thought = f"{THINK}\n{reasoning.strip()}\n{END_THINK}\n\n" if reasoning.strip() else f"{THINK}\n\n{END_THINK}\n\n"
    text = thought + content.strip()
    # Where the prompt has begun the thought, the model goes on with it.
    for opened in (f"{THINK}\n", THINK):
        if prompt.endswith(opened):
            return text.removeprefix(opened)
    return text


def _named(messages: Messages) -> str:
    return f"a conversation that begins {messages[0]['content'][:40]!r}" if messages else "an empty conversation"
