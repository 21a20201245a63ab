"""Chat templates that a recipe sets in place of the model's own: those that are built in, and files."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from actors.model.chat import Chat, unlearned_tokens
from actors.model.tokenizer import CHAT_TEMPLATE, END_OF_TURN, SPECIAL_TOKENS
from cluster.errors import UserError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# By the names in `cluster.recipe.base.TEMPLATES`: the template, its tokens, and which of them ends a turn.
BUILT_IN = {
    "triptych": (CHAT_TEMPLATE, SPECIAL_TOKENS[1:], END_OF_TURN),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
}


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, end_token: str | None) -> None:
    """Gives a tokenizer another chat template, with its tokens, and the token that ends the assistant's turn.

    Args:
        tokenizer: is changed.
        chat_template: a name in BUILT_IN, or a Jinja file; None for the tokenizer's own.
        end_token: None for the one that the template writes behind an answer.

    Raises:
        UserError: the file cannot be read or is no template, `end_token` is no token, or the template ends a turn with
            another one.
    """
    if chat_template in BUILT_IN:
        tokenizer.chat_template, tokens, end = BUILT_IN[chat_template]
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        tokenizer.eos_token = end
    elif chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"sft.chat_template: cannot read {chat_template}: {error}") from error
    if end_token:
        if end_token not in tokenizer.get_vocab():
            raise UserError(f"sft.end_token: {end_token!r} is not one token of {tokenizer.name_or_path}")
        tokenizer.add_special_tokens({"eos_token": end_token})
    try:
        found = tokenizer.convert_ids_to_tokens(Chat(tokenizer).end_of_turn_id)
    except UserError as error:
        raise UserError(f"sft.chat_template: {error}") from error
    if end_token and found != end_token:
        raise UserError(
            f"sft.end_token: the chat template ends the assistant's turn with {found}, and never writes {end_token}"
        )


def new_tokens(tokenizer: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of the tokens that the base model has not learned: those that its tokenizer lacks, and those of
    a template that it was given without being trained on conversations."""
    known = base.get_vocab()
    added = {number for token, number in tokenizer.get_vocab().items() if token not in known}
    return sorted(added | set(unlearned_tokens(tokenizer)))
