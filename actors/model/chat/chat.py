"""Conversations rendered for a model: the prompt it answers, its answer, and the rows it is trained on."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from actors.model.chat.template import QUIET, ChatTemplate, Messages, described
from actors.model.chat.turn import END_THINK, THINK, lost_part, with_reasoning
from actors.model.tokenizer import CHAT_TEMPLATE, REASONING_FIELDS
from cluster.errors import UserError

# The empty thought, such as <think></think>, with which a prompt begins the assistant's turn to stop it from thinking.
EMPTY_THOUGHT = re.compile(r"\s*<[^<>\s]+>\s*\w*\s*<[^<>\s]+>\s*")


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; `loss_mask[i]` says whether the loss counts `token_ids[i]`."""

    token_ids: list[int]
    loss_mask: list[bool]


class Chat(ChatTemplate):
    """Renders conversations with a tokenizer's own chat template."""

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
            messages: turns of role and content, with the other fields that the template reads.
            tools: declarations of the tools that the assistant may call.
            untrained: indices of the assistant's turns that are context alone.

        Raises:
            UserError: there is no turn to train on, or the template cannot write a turn, or would leave out a part.
        """
        messages = self._prepared(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i not in untrained]
        if not turns:
            raise UserError(f"{described(messages)} has no assistant turn to learn from")
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
        """Renders these messages as the tokens between two turns of the assistant.

        Raises:
            UserError: the chat template does not end the assistant's turns, or ignores some of the messages.
        """
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
                f"assistant turns of {described(messages)}"
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
                if lost := lost_part(messages[number], str(text)):
                    raise UserError(self._leaves_out(messages, lost))
        return Rendered(ids, mask)

    def _by_turn(self, messages: Messages, tools: Sequence[Any] | None, turns: Sequence[int]) -> list[Rendered]:
        """Renders by a template without marks: a turn is what follows its prompt, up to the token that ends it."""
        rows: list[tuple[str, list[tuple[int, int]]]] = []
        for turn in turns:
            if turn == 0:
                raise UserError(
                    f"{described(messages)} has the assistant's turn first, and the chat template of "
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
        """Returns the text that the model has to write after `prompt`, with the token that ends it.

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
                    f"{described(messages)} with {end}, nor with another eos_token_id of generation_config.json"
                )
            # The beginning of the next turn ends this one; the model, which does not write that, needs a token to stop.
            written = written.rstrip() + end
        lost = lost_part(message, written)
        if written and not lost:
            return written
        if END_THINK in self._template and not message.get("tool_calls"):
            return with_reasoning(message, prompt, str(message["content"])) + end
        # Calls stand behind a thought that the template closes, and the prompt has opened (Nemotron 3).
        calls = text.rpartition(END_THINK)[2].rpartition(end)[0]
        unthinking = {name: value for name, value in message.items() if name not in REASONING_FIELDS}
        if prompt.rstrip().endswith(THINK) and calls and not lost_part(unthinking, calls):
            return with_reasoning(message, prompt, calls) + end
        if written:
            raise UserError(self._leaves_out(messages, lost))
        raise UserError(
            f"the chat template of {self.tokenizer.name_or_path} begins the assistant's turn of {described(messages)} "
            "otherwise than its prompt: it cannot be trained on"
        )

    def _continuation(self, messages: Messages, tools: Sequence[Any] | None, turn: int, prompt: str, text: str) -> str:
        """Returns the assistant's turn in `text`, a conversation that does not begin with `prompt` to the letter.

        It is found where the prompt begins the turn with an empty thought, which the template leaves out of turns that
        are over (Gemma 4), and where only earlier messages are written in another way, such as the system's in the last
        of the user's turns (Mistral).

        Returns:
            The turn's text behind the prompt; empty where it is not found.
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
                f"{described(messages)}: a token of {self.tokenizer.name_or_path} would span the beginning of the "
                "assistant's turn, which is never so when the model is asked for it"
            )
        return Rendered(ids, mask)

    def _leaves_out(self, messages: Messages, part: str) -> str:
        return f"the chat template of {self.tokenizer.name_or_path} leaves out {part} of {described(messages)}"
