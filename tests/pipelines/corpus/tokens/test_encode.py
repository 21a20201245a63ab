"""The fast encoding gives the tokenizer's own ids, and no document is encoded twice."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from actors.model.tokenizer import SPECIAL_TOKENS
from pipelines.corpus.dedup.split import DROPPED, HELD_OUT, TRAIN
from pipelines.corpus.read.packages import docstrings, standard_library
from pipelines.corpus.tokens.cache import REPEATED, TokenCache
from pipelines.corpus.tokens.encode import _LONGEST_SPACE, as_tiktoken, encode_documents
from pipelines.corpus.tokens.train import train_tokenizer

# All characters, unassigned ones included: the two libraries' tables of characters might differ in any of them.
CHARACTERS = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]


@pytest.fixture(scope="module")
def docs() -> list[str]:
    return [text for _, text in docstrings(1, [str(file) for file in standard_library()[:120]])]


@pytest.fixture(scope="module")
def tokenizer(docs: list[str]) -> Tokenizer:
    tokenizer = train_tokenizer(docs, 2000)
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_tiktoken_gives_the_ids_of_the_tokenizer(tokenizer: Tokenizer, docs: list[str]) -> None:
    fast = as_tiktoken(tokenizer)
    assert fast is not None
    rng = random.Random(2)
    alphabet = [
        *"aeinst",
        "'s",
        "'ll",
        " ",
        "  ",
        "\n",
        "\t",
        "1",
        "é",
        "東",
        "🙂",
        "\u0301",
        "\u00a0",
        *SPECIAL_TOKENS,
    ]
    mixed = ["".join(rng.choices(alphabet, k=30)) for _ in range(3000)]
    scripts = [f"a{x}b 1{x}" for x in CHARACTERS]
    rows = [" ".join(scripts[start : start + 512]) for start in range(0, len(scripts), 512)]
    texts = [*docs, *mixed, *rows, "", " ", "x" * 5000, " " * 5000 + "x"]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [fast.encode_ordinary(text) for text in texts] == expected


def test_a_text_with_more_spaces_than_tiktoken_can_match_is_encoded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = f"before{' ' * 2 * _LONGEST_SPACE}behind"
    (ids,) = encode_documents(tmp_path / "tokenizer.json", [text])
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def changed(tokenizer: Tokenizer, **model: object) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    content["model"].update(model)
    return Tokenizer.from_str(json.dumps(content))


def test_other_tokenizers_are_left_to_their_own_library(tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    reordered = changed(tokenizer, merges=[*model["merges"][1:], model["merges"][0]])
    assert as_tiktoken(reordered) is None
    # "th" is a token that nothing is joined to: tiktoken would find it.
    fewer = changed(tokenizer, merges=model["merges"][:-1])
    assert as_tiktoken(fewer) is None
    lower = Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    assert as_tiktoken(lower) is None
    added = Tokenizer.from_str(tokenizer.to_str())
    added.add_tokens(["whole"])
    assert as_tiktoken(added) is None
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert as_tiktoken(words) is None


def test_a_token_that_its_own_spelling_does_not_give_is_noticed() -> None:
    """With bc joined before ab, abc is never a, b, c joined to ab and c; tiktoken would join a and bc to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator([], trainer=trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    joined = [["b", "c"], ["a", "b"], ["ab", "c"]]
    more = {"".join(pair): len(vocabulary) + place for place, pair in enumerate(joined)}
    assert as_tiktoken(changed(tokenizer, vocab=vocabulary | more, merges=joined)) is None
    right = [["b", "c"], ["a", "bc"]]
    more = {"".join(pair): len(vocabulary) + place for place, pair in enumerate(right)}
    assert as_tiktoken(changed(tokenizer, vocab=vocabulary | more, merges=right)) is not None


def write_part(path: Path, texts: list[str]) -> Path:
    digests = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
    pq.write_table(pa.table({"digest": pa.array(digests, pa.binary(16)), "text": texts}), path)
    return path


def test_documents_are_encoded_once(tokenizer: Tokenizer, docs: list[str], tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = docs[:1200]
    prepared = write_part(tmp_path / "part-00000.parquet", texts)
    assignments = np.random.default_rng(1).choice([DROPPED, TRAIN, HELD_OUT], len(texts), p=[0.2, 0.6, 0.2])
    np.save(tmp_path / "assignments.npy", assignments.astype(np.uint8))
    tokens = TokenCache(tmp_path / "tokens", tmp_path / "tokenizer.json", "first")
    chosen = int((assignments != DROPPED).sum())
    assert tokens.encode(prepared, tmp_path / "assignments.npy") == chosen
    assert tokens.encode(prepared, tmp_path / "assignments.npy") == 0

    # Other documents of a later build, in another order: only what is new is encoded.
    later = write_part(prepared, [f"{texts[0]} and more", *reversed(texts)])
    np.save(tmp_path / "assignments.npy", np.append([TRAIN], assignments[::-1]).astype(np.uint8))
    assert tokens.encode(later, tmp_path / "assignments.npy") == 1
    again = write_part(tmp_path / f"part-00000{REPEATED}1.parquet", texts[:700])
    asked = pq.read_table(again)["digest"].combine_chunks().filter(pa.array(assignments[:700] != DROPPED))
    expected = [
        tokenizer.encode(text, add_special_tokens=False).ids
        for text, assignment in zip(texts[:700], assignments, strict=False)
        if assignment != DROPPED
    ]
    assert [ids.tolist() for ids in tokens.of(again).ids(asked)] == expected

    other = TokenCache(tmp_path / "tokens", tmp_path / "tokenizer.json", "second")
    assert other.encode(later, tmp_path / "assignments.npy") == chosen + 1


def test_another_tokenizer_at_the_same_path_gives_its_own_ids(tmp_path: Path) -> None:
    path, text = tmp_path / "tokenizer.json", "the cat sat on the mat"
    found = []
    for vocabulary in (300, 262):
        tokenizer = train_tokenizer([text] * 50, vocabulary)
        tokenizer.save(str(path))
        found.append(encode_documents(path, [text])[0].tolist())
        assert found[-1] == tokenizer.encode(text, add_special_tokens=False).ids
    assert found[0] != found[1]
