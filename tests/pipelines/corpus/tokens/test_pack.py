"""Packing by hand-computed examples and invariants; the tokenizer's round trip and its special tokens."""

import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.model.tokenizer import SPECIAL_TOKENS
from pipelines.corpus.tokens.encode import encode_documents
from pipelines.corpus.tokens.pack import best_fit, cut, pack
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer

TEXTS = ["The cat sat on the mat, and the dog sat beside the cat.", "A document may spell <|end|> or <|user|>."] * 20


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(train_tokenizer(TEXTS, 600, request.param), path, context=64)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(folder))


def test_best_fit_takes_the_fullest_bin_that_has_room() -> None:
    # 7 and 6 open bins with room for 3 and 4; 4 fits the second exactly; 3 the first; 2 opens a third, 1 joins it.
    assert best_fit([3, 7, 2, 6, 1, 4], 10) == [[1, 0], [3, 5], [2, 4]]


def test_a_long_document_is_cut_and_nothing_of_it_lost() -> None:
    assert cut([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert cut([1, 2], 2) == [[1, 2]]


def test_rows_by_hand() -> None:
    rows = pack([[5, 0], [6, 7, 0], [8, 8, 8, 8, 8, 0]], context=4)
    assert rows.input_ids.tolist() == [[8, 8, 8, 8], [6, 7, 0, 0], [5, 0, 8, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 1]]


def test_every_token_is_in_one_row_and_no_document_that_fits_is_cut() -> None:
    rng = random.Random(3)
    documents = [[rng.randint(5, 999) for _ in range(rng.randint(1, 90))] + [0] for _ in range(500)]
    rows = pack(documents, context=64)
    packed = []
    for ids, members in zip(rows.input_ids, rows.document_ids, strict=True):
        assert (np.diff(members[members >= 0]) >= 0).all()
        assert (members[np.argmax(members == -1) :] == -1).all() or -1 not in members
        assert (ids[members == -1] == 0).all()
        packed += [tuple(ids[members == number].tolist()) for number in range(members.max() + 1)]
    expected = [tuple(piece) for document in documents for piece in cut(document, 64)]
    assert sorted(packed) == sorted(expected)
    used = sum(map(len, expected))
    assert len(rows.input_ids) <= -(-used // 64) * 1.02


def test_no_documents_make_no_rows() -> None:
    assert pack([], context=8).input_ids.shape == (0, 8)


@pytest.mark.parametrize(
    "text",
    [
        *("The cat", " two  spaces ", "naïve 東京 🙂👨‍👩‍👧", "tab\tand\n\nlines\n", "don 't , stop .", "<|end|> here"),
        *("## a ##b⁀c", "x" * 250, "東" * 80, "\x00\x7f"),
    ],
)
def test_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerBase, folder: Path, text: str) -> None:
    ids = encode_documents(folder / "tokenizer.json", [text])[0].tolist()
    assert tokenizer.decode(ids) == text
    if "<|" not in text:
        assert tokenizer.encode(text) == ids


def test_special_tokens_have_their_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|endoftext|>")
    assert tokenizer.encode("<|user|>") == [2]
    assert tokenizer.decode([2, 4], skip_special_tokens=True) == ""


def test_a_document_cannot_spell_a_special_token(folder: Path) -> None:
    texts = ["".join(SPECIAL_TOKENS), "before <|end|> after <|endoftext|>"]
    for ids in encode_documents(folder / "tokenizer.json", texts):
        assert min(ids) >= len(SPECIAL_TOKENS)


def test_the_chat_template_travels_with_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "The cat"}, {"role": "assistant", "content": "sat"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|user|>The cat<|end|><|assistant|>sat<|end|>"


def test_training_the_tokenizer_twice_gives_the_same() -> None:
    for kind in ("bpe", "wordpiece"):
        assert train_tokenizer(TEXTS, 600, kind).to_str() == train_tokenizer(iter(TEXTS), 600, kind).to_str()


def test_wordpiece_takes_the_longest_token_at_each_place() -> None:
    tokenizer = train_tokenizer(["unlike unlike unlike likes likes likes"] * 5, 600, "wordpiece")
    assert tokenizer.get_vocab_size() <= 600
    vocabulary = tokenizer.get_vocab()
    for word in ("unlike", "likesx", "zunlikes"):
        pieces, rest, before = [], word, ""
        while rest:
            longest = next(n for n in range(len(rest), 0, -1) if before + rest[:n] in vocabulary)
            pieces.append(before + rest[:longest])
            rest, before = rest[longest:], "⁀"
        assert tokenizer.encode(word).tokens == pieces
    assert tokenizer.encode("unlike").tokens == ["unlike"]
