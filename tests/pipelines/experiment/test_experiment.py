"""Experiments with the corpus: the recipes of variants, and models of a few steps beside a closed form."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from cluster.recipe.recipe import Recipe
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer
from pipelines.experiment.run import variant
from pipelines.experiment.small_models import SmallModelPhase, _batches
from tests.demo_recipe import COUNTRIES, DEMO, RANDOM_FACTS


def make_recipe(variants: dict[str, Any], **settings: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "corpus": {"sources": [COUNTRIES], "min_words": 7},
            "experiment": {"target": [RANDOM_FACTS], "variants": variants, **settings},
            **DEMO,
        }
    )


def test_a_variant_differs_in_its_keys_and_lacks_the_target() -> None:
    recipe = make_recipe({"facts": {"sources": [RANDOM_FACTS], "decontaminate": {"files": ["exam.json"], "n": 9}}})
    made = variant(recipe, "facts", Path("/t.jsonl"), Path("/run"))
    assert [source.function for source in made.corpus.sources] == [RANDOM_FACTS["function"]]
    assert made.corpus.min_words == 7
    assert made.corpus.decontaminate is not None
    assert (made.corpus.decontaminate.files, made.corpus.decontaminate.n) == (["exam.json", "/t.jsonl"], 9)
    assert made.model.size == "400K"
    same = variant(recipe, "recipe", Path("/t.jsonl"), Path("/run"))
    assert same.corpus.sources == recipe.corpus.sources
    assert same.corpus.decontaminate is not None
    assert same.corpus.decontaminate.files == ["/t.jsonl"]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {"minimum_words": 3}}, r"experiment\.variants\.a\.minimum_words: Extra inputs"),
        ({"a": {"rules": {"c4": {"sentences": 0}}}}, r"variants\.a\.rules\.c4\.sentences: Input should be greater"),
        ({"recipe": {}}, "recipe is the corpus as the recipe has it"),
        ({"a": {"sources": []}}, r"variants\.a has no corpus\.sources"),
        ({}, "at least 1 item"),
    ],
)
def test_a_variant_that_is_no_corpus_is_refused(variants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_recipe(variants)


def test_every_row_is_read_once_before_any_again() -> None:
    found = np.concatenate([*_batches(rows=10, steps=9, size=4, seed=3)])
    assert len(found) == 36
    assert all(sorted(found[start : start + 10].tolist()) == list(range(10)) for start in (0, 10, 20))
    assert found.tolist() != np.concatenate([*_batches(10, 9, 4, 4)]).tolist()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished corpus of one shard, and a target of two texts like it."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(4)
    words = ["".join(draw.choices("abcdefghijklm", k=draw.randint(3, 8))) for _ in range(100)]
    texts = [" ".join(draw.choices(words, k=100)) for _ in range(30)]
    tokenizer = train_tokenizer(texts, 400)
    save_tokenizer(tokenizer, folder / "tokenizer", 32)
    ids = np.array(tokenizer.encode(" ".join(texts[2:])).ids)
    rows = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    shard = pa.table({"input_ids": rows.tolist(), "document_ids": np.zeros_like(rows).tolist()})
    (folder / "shards" / "train").mkdir(parents=True)
    pq.write_table(shard, folder / "shards" / "train" / "shard-00000.parquet")
    (folder / "target.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:2]))
    return folder


def bits(corpus: Path, index: int, **settings: object) -> list[float]:
    given = {"size": "20K", "context": 32, "tokens": 2048, "seeds": 2, **settings}
    recipe = make_recipe({"a": {}}, **given)
    assert recipe.experiment is not None
    report = SmallModelPhase((corpus,), corpus / "target.jsonl", recipe.experiment, 5).only(index)(0)
    assert report["trained_rows"] == given["tokens"] / 32
    return report["bits"]


def test_an_untrained_model_has_the_bits_of_an_even_choice(corpus: Path) -> None:
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in (corpus / "target.jsonl").read_text().splitlines()]
    even = [len(tokenizer.encode(text).ids) * math.log2(tokenizer.get_vocab_size()) for text in texts]
    assert min(len(tokenizer.encode(text).ids) for text in texts) > 2 * 32
    assert bits(corpus, 0, tokens=256, learning_rate=1e-9) == pytest.approx(even, rel=0.01)


def test_training_lowers_the_bits_and_the_seed_decides_on_them(corpus: Path) -> None:
    untrained, trained = bits(corpus, 0, tokens=256, learning_rate=1e-9), bits(corpus, 0)
    assert max(trained) < 0.9 * min(untrained)
    assert bits(corpus, 0) == trained
    assert bits(corpus, 1) != trained
