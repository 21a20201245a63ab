"""The tokenizer: byte-level BPE or WordPiece trained on the corpus itself, kept as a Hugging Face directory."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from actors.model.chat_template import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS
from cluster.errors import UserError, first_line
from cluster.recipe.corpus import TokenizerKind

# Training keeps every distinct word of the sample in memory.
SAMPLE_BYTES = 64 << 20
# Before a WordPiece token that goes on with a word. BERT's ## would be two of the characters that stand for bytes.
_GOES_ON = "⁀"
# WordPiece looks for the longest token at each place, so that its time grows with the square of a word's length.
_WORD_BYTES = 100


def train_tokenizer(texts: Iterable[str], vocabulary: int, kind: TokenizerKind = "bpe") -> Tokenizer:
    """Trains a tokenizer of at most `vocabulary` tokens; the special tokens are ids 0 to 4.

    Every text can be encoded, since all 256 bytes are tokens, and decodes to itself, since no space is put before it.
    """
    return _wordpiece(texts, vocabulary) if kind == "wordpiece" else _bpe(texts, vocabulary)


def _bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
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


def _wordpiece(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """WordPiece (Schuster and Nakajima 2012) on bytes, each of which is a token at a word's start and within it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), pre_tokenizers.FixedLength(_WORD_BYTES)]
    )
    training = Tokenizer(models.WordPiece(unk_token=END_OF_TEXT))
    training.pre_tokenizer = cut
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        # Those within words too: the trainer itself would take what it sees there, in an order that changes.
        special_tokens=[*SPECIAL_TOKENS, *(f"{_GOES_ON}{byte}" for byte in alphabet)],
        initial_alphabet=alphabet,
        continuing_subword_prefix=_GOES_ON,
        show_progress=False,
    )
    training.train_from_iterator(texts, trainer=trainer)
    model = models.WordPiece(
        training.get_vocab(),
        unk_token=END_OF_TEXT,
        max_input_chars_per_word=_WORD_BYTES,
        continuing_subword_prefix=_GOES_ON,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_GOES_ON, ""), decoders.ByteLevel()])
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

    from actors.model.causal_lm import place
    from actors.model.chat import ready_for_chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(**place(model))
    except (OSError, ValueError) as error:
        raise UserError(f"model.start_from: no tokenizer in {model}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"model.start_from: the tokenizer of {model} has no tokenizer.json")
    tokenizer.model_max_length = context
    ready_for_chat(tokenizer).save_pretrained(str(folder))


def document_end(folder: Path) -> int:
    """The token that ends a document: the one that rows are padded with."""
    from actors.model.tokenizer import load_tokenizer

    return int(load_tokenizer(folder).pad_token_id)
