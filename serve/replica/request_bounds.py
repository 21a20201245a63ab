"""Bounds on the size of a request, checked before any part of it is parsed, rendered or tokenized.

Validating, rendering and tokenizing 9 MB take seconds, during which no other model of the process answers. What fits
into a model's context is a small part of that, and is bounded by the lengths of the texts alone.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from serve.errors import RequestError
from serve.request_size import check_size, without_prompts
from serve.transport.messages import Endpoint

# The most sequences that one request may have the engine write: prompts times answers to each.
MAX_SEQUENCES = 256
# Characters of a request besides its messages, such as those of a JSON schema.
OTHER_CHARACTERS = 50_000
# Names that chat templates read, and that requests set in fields of their own.
OWN_FIELDS = frozenset({"messages", "tools"})
# Fields that restrict an answer to a grammar. A grammar that no text can follow makes the generation fail.
FORMS = ("response_format", "structured_outputs", "text", "output_config", "tools")
# Words in the type names of message parts that are no text, such as image_url and input_audio.
MEDIA = ("image", "audio", "video", "file", "document")
# Fields with one text or a list, each of which is searched for in every answer or tokenized before it.
MAX_TEXTS = {"stop": 32, "bad_words": 256}


class RequestBounds:
    """The bounds of one model.

    Args:
        context: the most tokens of a request, prompt and answer together.
        longest_token: the most characters of a token.
        template_variables: the names that the model's chat template reads.
        unforced: why no answer can be forced into a form; empty if it can.
    """

    def __init__(
        self, context: int, longest_token: int, template_variables: Collection[str], unforced: str = ""
    ) -> None:
        self._context = context
        self._characters = context * longest_token + OTHER_CHARACTERS
        self._variables = sorted(set(template_variables) - OWN_FIELDS)
        self._unforced = unforced

    def check(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """Checks a request. Wrong types are left to the validation that follows.

        Raises:
            RequestError: 400, it cannot fit into the context, asks for too many answers, sets what is no variable of
                the chat template, or forces the answers of a model that does not allow it.
        """
        rest = without_prompts(endpoint, body)
        prompts = list(_prompts(body.get("prompt")))
        if endpoint == "detokenize":
            prompts.append(body.get("tokens"))
        elif endpoint == "score":
            prompts += _listed(body.get("conversations"))
        for value in (*prompts, rest):
            check_size(value, self._context, self._characters)
        for field, most in MAX_TEXTS.items():
            if len(_listed(rest.get(field))) > most:
                raise _refusal(f"{field}: a request may have {most} texts there", field)
        answers = rest.get("n")
        sequences = max(1, len(prompts)) * (answers if isinstance(answers, int) else 1)
        if endpoint in ("completions", "chat/completions") and sequences > MAX_SEQUENCES:
            message = f"n: a request may have {MAX_SEQUENCES} answers, all prompts together, and not {sequences}"
            raise _refusal(message, "n")
        _check_parts(rest)
        self._check_variables(rest.get("chat_template_kwargs"))
        if self._unforced and (form := forced_form(rest)):
            raise _refusal(f"{form}: {self._unforced}", form)

    def _check_variables(self, given: Any) -> None:
        if isinstance(given, dict) and (unknown := sorted(set(given) - set(self._variables))):
            reads = ", ".join(self._variables) or "none"
            message = f"chat_template_kwargs: {', '.join(unknown)[:200]}: the model's chat template reads only {reads}"
            raise _refusal(message, "chat_template_kwargs")


def _check_parts(body: Mapping[str, Any]) -> None:
    for field in ("messages", "input"):
        for message in _listed(body.get(field)):
            for part in _listed(message.get("content") if isinstance(message, dict) else None):
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and any(word in kind for word in MEDIA):
                    raise _refusal(
                        f"{field}: a part has the type {kind[:40]!r}, and this model reads text alone", field
                    )


def forced_form(body: Mapping[str, Any]) -> str | None:
    """Returns the field of a request that restricts the answer to a grammar; None if there is none."""
    for field in FORMS:
        given = body.get(field)
        if field in ("text", "output_config"):
            given = given.get("format") if isinstance(given, dict) else None
        free = isinstance(given, dict) and given.get("type") == "text"
        if given and not free and not (field == "tools" and body.get("tool_choice") in ("none", {"type": "none"})):
            return field
    return None


def too_many_tokens(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> str:
    """Returns why no answer of a model can be forced into a form; empty if it can.

    A grammar allows or forbids each token of the tokenizer. One without an embedding makes xgrammar 0.2 fail in the
    engine, and not in the request.
    """
    tokens = 1 + max(tokenizer.get_vocab().values())
    if tokens <= embeddings:
        return ""
    return (
        f"this model's tokenizer has {tokens} tokens and the model {embeddings} embeddings, so that no answer can "
        "be forced into a form; resize the embeddings and train the model again"
    )


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the most characters of a token of a tokenizer."""
    return max(map(len, tokenizer.get_vocab()))


def _refusal(message: str, param: str | None = None) -> RequestError:
    return RequestError(400, message, "BadRequestError", param)


def _prompts(prompt: Any) -> Iterable[Any]:
    """Returns the prompts in the field `prompt`: a text, token ids, or a list of either."""
    if prompt is None:
        return []
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
