"""Tokenizers in the folders of models, and the project's own chat template with its special tokens.

Importing transformers takes 10 s of processor time in every task of the corpus stage, which needs the names here alone:
it is imported when a tokenizer is loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

# The field of a turn with the reasoning before an answer, and the names that templates and data have for it.
REASONING = "reasoning_content"
REASONING_FIELDS = (REASONING, "reasoning", "thinking")

# `generation` marks the tokens that are trained: the assistant's text and the token that ends its turn. A space is put
# into every `<|` that people write: a person who types a special token gets its characters and cannot speak as the
# assistant. The template does it because every reader of it (transformers, vLLM) then does the same.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set words = message['content'] | replace('<|', '< |') %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ words + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ words + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Names, before and since version 5 of transformers, of the class of a tokenizer that is its tokenizer.json and no more.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


# Tokens that end a text, by model family. The eos_token of a model that was tuned to chat often ends a turn instead.
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>")


def begin_of_text(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Returns the token that the tokenizer puts before every text (Llama 3, Gemma, Mistral), as a list of its id;
    empty where it puts none."""
    begin = tokenizer.bos_token_id
    return [int(begin)] if begin is not None and tokenizer.encode("a", verbose=False)[:1] == [begin] else []


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns the token that ended texts when the model was trained: its family's, or else the eos_token."""
    if tokenizer.eos_token in ENDS_OF_TEXT:
        return str(tokenizer.eos_token)
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return next((token for token in ENDS_OF_TEXT if token in known), None) or str(tokenizer.eos_token)


def end_token_ids(model: str | Path, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Returns every token at which generation ends: the tokenizer's eos_token, and those of config.json and
    generation_config.json, which may be several (Llama 3's <|end_of_text|>, <|eom_id|> and <|eot_id|>)."""
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in ("config.json", "generation_config.json"):
        path = Path(model) / name
        given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        found.update(given if isinstance(given, list) else [] if given is None else [given])
    return frozenset(found)


def require_same_tokens(teacher: str | Path, student: str | Path) -> None:
    """Refuses a teacher whose token ids mean others than the student's: its log-probabilities would be of other texts.

    Raises:
        UserError: there is no such tokenizer, or its tokens are others.
    """
    try:
        own, other = load_tokenizer(student).get_vocab(), load_tokenizer(teacher).get_vocab()
    except (OSError, ValueError) as error:
        raise UserError(f"rlhf.teacher: cannot load the tokenizer of {teacher}: {first_line(error)}") from error
    if own != other:
        token = next(name for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name))
        raise UserError(
            f"rlhf.teacher: the tokens of {teacher} are not those of the policy: {token!r} is {other.get(token)} there "
            f"and {own.get(token)} here; take a teacher that was trained with the same tokenizer and chat template"
        )


def load_tokenizer(model: str | Path) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a Hugging Face directory, or of a model by its name at the Hub.

    `AutoTokenizer` imports torch and the names of every model: 7 s of processor time in each process. A tokenizer that
    has no class of its own, such as those of the corpus stage, is loaded without it.

    Raises:
        OSError, ValueError: there is none.
    """
    settings = Path(model) / "tokenizer_config.json"
    if (
        settings.is_file()
        and json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") in GENERIC_CLASSES
    ):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(model))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))
