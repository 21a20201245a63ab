"""Trains the tokenizer, byte-level BPE or WordPiece, on the corpus and saves it as a Hugging Face directory."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from actors.model.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS
from cluster.errors import UserError, first_line
from cluster.recipe.corpus import TokenizerKind
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write

# Prefix of WordPiece tokens within a word. BERT's ## would be two of the characters that stand for bytes.
_CONTINUATION = "⁀"
# WordPiece searches the longest token at each place, so its time grows with the square of a word's length.
_WORD_BYTES = 100


def make_tokenizer(recipe: Recipe, texts: Iterable[str], folder: Path) -> int:
    """Saves the tokenizer in `folder` unless it is there: a trained one, or that of `model.start_from`.

    Args:
        texts: the texts to train on; read only if there is something to train.

    Returns:
        The size of its vocabulary.

    Raises:
        UserError: the model to start from has no usable tokenizer.
    """
    model = recipe.model
    if not folder.exists():
        with atomic_write(folder) as side:
            shutil.rmtree(side, ignore_errors=True)
            if model.start_from:
                save_tokenizer_of(model.start_from, side, model.context)
            else:
                tokenizer = train_tokenizer(texts, model.vocabulary, recipe.corpus.tokenizer)
                save_tokenizer(tokenizer, side, model.context)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return len(content["model"]["vocab"])


def train_tokenizer(texts: Iterable[str], vocabulary: int, kind: TokenizerKind = "bpe") -> Tokenizer:
    """Trains a tokenizer of at most `vocabulary` tokens; the special tokens have the ids 0 to 4.

    Every text can be encoded, since all 256 bytes are tokens, and decodes to itself, since no space is prepended.
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
    """Trains WordPiece (Schuster and Nakajima 2012) on bytes; each byte is a token at the start of and within words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), pre_tokenizers.FixedLength(_WORD_BYTES)]
    )
    training = Tokenizer(models.WordPiece(unk_token=END_OF_TEXT))
    training.pre_tokenizer = cut
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        # The trainer itself would add only the bytes that it sees within words, in an order that varies.
        special_tokens=[*SPECIAL_TOKENS, *(f"{_CONTINUATION}{byte}" for byte in alphabet)],
        initial_alphabet=alphabet,
        continuing_subword_prefix=_CONTINUATION,
        show_progress=False,
    )
    training.train_from_iterator(texts, trainer=trainer)
    model = models.WordPiece(
        training.get_vocab(),
        unk_token=END_OF_TEXT,
        max_input_chars_per_word=_WORD_BYTES,
        continuing_subword_prefix=_CONTINUATION,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_CONTINUATION, ""), decoders.ByteLevel()])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Saves a tokenizer with the chat template as a directory that `AutoTokenizer` and vLLM load unchanged."""
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
    """Saves the tokenizer of the model that training starts from, with the chat template and tokens that it lacks.

    Raises:
        UserError: the model has no tokenizer, or no tokenizer.json.
    """
    from transformers import AutoTokenizer

    from actors.model.causal_lm import from_pretrained_kwargs
    from actors.model.chat import ready_for_chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(**from_pretrained_kwargs(model))
    except (OSError, ValueError) as error:
        raise UserError(f"model.start_from: no tokenizer in {model}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"model.start_from: the tokenizer of {model} has no tokenizer.json")
    tokenizer.model_max_length = context
    ready_for_chat(tokenizer).save_pretrained(str(folder))


def document_frame(folder: Path) -> tuple[list[int], int]:
    """Returns the ids of the tokens before a document, at most one, and of the one that ends it, which is the padding
    token."""
    from actors.model.tokenizer import begin_of_text, load_tokenizer

    tokenizer = load_tokenizer(folder)
    return begin_of_text(tokenizer), int(tokenizer.pad_token_id)
