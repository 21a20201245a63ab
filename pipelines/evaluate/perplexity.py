"""How well a run's models predict text that none was trained on: what alignment costs shows there too."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as parquet
from transformers import AutoTokenizer

from actors.orchestrator.fleet import Fleet
from actors.trainer.data import shards_in
from cluster.errors import wait_for
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.corpus.read.records import BadRecord
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.evaluate.stats import QUANTILE


@dataclass(frozen=True)
class Perplexity:
    """Of text, by every model; and its relative change from the fine-tuned model to the policy, with 95 % bounds."""

    base: float
    sft: float
    policy: float
    change: float
    low: float
    high: float
    tokens: int


def text_rows(recipe: Recipe, run: RunFolder) -> list[list[int]]:
    """Token ids of held-out text, no row longer than the context or across documents: from `evaluate.text`, else what
    the corpus held out. Empty where there is neither."""
    most, rows = recipe.evaluate.text_tokens, list[list[int]]()
    for row in _documents(recipe, run):
        for start in range(0, len(row), recipe.model.context):
            window = row[start : start + recipe.model.context][:most]
            most -= len(window)
            # The first token of a row has nothing to be predicted from.
            if len(window) > 1:
                rows.append(window)
        if most <= 0:
            break
    return rows


def losses(fleet: Fleet, rows: Sequence[list[int]], deadline: float) -> list[float]:
    """Nats of every row by the weights that the fleet holds, its first token left out."""
    actors = fleet.handles()[: len(rows)]
    parts = [rows[number :: len(actors)] for number in range(len(actors))]
    asked = [actor.score.remote(part, [1] * len(part)) for actor, part in zip(actors, parts, strict=True)]
    found = [0.0] * len(rows)
    for number, scores in enumerate(wait_for(asked, deadline, "the scores of held-out text")):
        found[number :: len(actors)] = [-sum(row) for row in scores]
    return found


def perplexity(rows: Sequence[list[int]], nats: Mapping[str, Sequence[float]]) -> Perplexity:
    """Perplexities a token, and what changed: a ratio over rows of unequal length (Cochran 1977, section 2.11).

    Args:
        rows: what was predicted.
        nats: by model, those of every row, as of `losses`.
    """
    tokens = np.array([len(row) - 1 for row in rows], dtype=float)
    values = {name: math.exp(sum(found) / tokens.sum()) for name, found in nats.items()}
    more = np.array(nats["policy"]) - np.array(nats["sft"])
    change = more.sum() / tokens.sum()
    spread = math.sqrt(len(rows) / max(1, len(rows) - 1) * ((more - change * tokens) ** 2).sum()) / tokens.sum()
    low, high = (math.expm1(change + side * QUANTILE * spread) for side in (-1, 1))
    return Perplexity(**values, change=math.expm1(change), low=low, high=high, tokens=round(tokens.sum()))


def _documents(recipe: Recipe, run: RunFolder) -> Iterator[list[int]]:
    if recipe.evaluate.text:
        tokenizer = AutoTokenizer.from_pretrained(run.path("base"))
        for split in plan_splits(recipe.evaluate.text, recipe.seed):
            for document in read_split(split):
                if not isinstance(document, BadRecord):
                    yield tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
    elif recipe.corpus.sources:
        for shard in shards_in(run.path("corpus") / "shards" / "held_out"):
            for row in parquet.read_table(shard.path).to_pylist():
                ids, documents = np.array(row["input_ids"]), np.array(row["document_ids"])
                text = documents != PAD_DOCUMENT_ID
                for piece in np.split(ids[text], np.flatnonzero(np.diff(documents[text])) + 1):
                    yield piece.tolist()
