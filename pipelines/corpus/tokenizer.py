"""The tokenizer: byte-level BPE trained on the corpus itself, kept as a Hugging Face directory."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from actors.model.chat_template import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS
from cluster.failures import UserError

# Training keeps every distinct word of the sample in memory.
SAMPLE_BYTES = 64 << 20


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Trains byte-level BPE of at most `vocabulary` tokens; the special tokens are ids 0 to 4.

    Every text can be encoded, since all 256 bytes are tokens, and decodes to itself, since no space is put before it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes a directory that `AutoTokenizer` and vLLM load as it is, chat template included."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(str(folder))


def save_tokenizer_of(model: str, folder: Path, context: int) -> None:
    """Writes the tokenizer of a model that training starts from, with what it lacks for conversations.

    Raises:
        UserError: there is none, or it has no tokenizer.json.
    """
    from transformers import AutoTokenizer

    from actors.model.chat import ready_for_chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"model.start_from: no tokenizer in {model}: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise UserError(f"model.start_from: the tokenizer of {model} has no tokenizer.json")
    tokenizer.model_max_length = context
    ready_for_chat(tokenizer).save_pretrained(str(folder))


def document_end(folder: Path) -> int:
    """The token that ends a document: the one that rows are padded with."""
    from actors.model.tokenizer import load_tokenizer

    return int(load_tokenizer(folder).pad_token_id)


def encode_documents(file: Path, texts: Sequence[str]) -> Iterator[list[int]]:
    """Token ids of documents. One that spells a special token gets the tokens of its characters, never the id."""
    for encoding in _plain_encoder(file).encode_batch(list(texts), add_special_tokens=False):
        yield encoding.ids


@lru_cache(maxsize=1)
def _plain_encoder(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    return tokenizer
