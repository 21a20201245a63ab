"""Perplexity of held-out text under a run's models, in which a cost of alignment shows too."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as parquet
from transformers import AutoTokenizer

from actors.model.tokenizer import begin_of_text
from actors.orchestrator.fleet import Fleet
from actors.trainer.data import shards_in
from cluster.errors import wait_for
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.corpus.read.records import Document
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.evaluate.stats import RatioChange, log_ratio_change


@dataclass(frozen=True)
class Perplexity:
    """Perplexity per token of the same text under three models.

    Attributes:
        base: the value under the base model.
        sft: the value under the fine-tuned model.
        policy: the value under the policy.
        tokens: how many tokens were predicted.
        rows: the rows of text that they stand in, the cases of the intervals.
        fine_tuning: the change from the base model to the fine-tuned model.
        reinforcement: the change from the fine-tuned model to the policy.
        alignment: the change from the base model to the policy.
    """

    base: float
    sft: float
    policy: float
    tokens: int
    rows: int
    fine_tuning: RatioChange
    reinforcement: RatioChange
    alignment: RatioChange


def text_rows(recipe: Recipe, run: RunFolder) -> list[list[int]]:
    """Reads held-out text: that of `evaluate.text`, else the corpus's held-out documents.

    Returns:
        Token ids in rows of at most `model.context`, each within one document; empty where there is no text.
    """
    budget, rows = recipe.evaluate.text_tokens, list[list[int]]()
    for row in _documents(recipe, run):
        for start in range(0, len(row), recipe.model.context):
            window = row[start : start + recipe.model.context][:budget]
            budget -= len(window)
            # Nothing precedes the first token of a row, from which to predict it.
            if len(window) > 1:
                rows.append(window)
        if budget <= 0:
            break
    return rows


def negative_log_likelihoods(fleet: Fleet, rows: Sequence[list[int]], deadline: float) -> list[float]:
    """Scores rows of text with the weights that the fleet holds.

    Args:
        fleet: rollout actors, which share the rows.
        rows: token ids.
        deadline: the longest wait, in seconds.

    Returns:
        For each row the negative log-likelihood in nats of its tokens after the first.

    Raises:
        DeadlineError: the scores were not there in time.
    """
    actors = fleet.handles()[: len(rows)]
    parts = [rows[number :: len(actors)] for number in range(len(actors))]
    refs = [actor.score.remote(part, [1] * len(part)) for actor, part in zip(actors, parts, strict=True)]
    nats = [0.0] * len(rows)
    for number, scores in enumerate(wait_for(refs, deadline, "the scores of held-out text")):
        nats[number :: len(actors)] = [-sum(row) for row in scores]
    return nats


def perplexity(rows: Sequence[list[int]], nats: Mapping[str, Sequence[float]]) -> Perplexity:
    """Computes perplexities and their changes from model to model, paired by row.

    Args:
        rows: token ids.
        nats: the values of `negative_log_likelihoods` by the model's name: base, sft and policy.
    """
    tokens = [len(row) - 1 for row in rows]
    values = {name: math.exp(sum(row_nats) / sum(tokens)) for name, row_nats in nats.items()}
    return Perplexity(
        **values,
        tokens=sum(tokens),
        rows=len(rows),
        fine_tuning=log_ratio_change(nats["base"], nats["sft"], tokens),
        reinforcement=log_ratio_change(nats["sft"], nats["policy"], tokens),
        alignment=log_ratio_change(nats["base"], nats["policy"], tokens),
    )


def _documents(recipe: Recipe, run: RunFolder) -> Iterator[list[int]]:
    if recipe.evaluate.text:
        tokenizer = AutoTokenizer.from_pretrained(run.path("base"))
        begin = begin_of_text(tokenizer)
        for split in plan_splits(recipe.evaluate.text, recipe.seed):
            for document in read_split(split):
                if isinstance(document, Document):
                    yield begin + tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
    elif recipe.corpus.sources:
        for shard in shards_in(run.path("corpus") / "shards" / "held_out"):
            for row in parquet.read_table(shard.path).to_pylist():
                ids, documents = np.array(row["input_ids"]), np.array(row["document_ids"])
                text = documents != PAD_DOCUMENT_ID
                for piece in np.split(ids[text], np.flatnonzero(np.diff(documents[text])) + 1):
                    yield piece.tolist()
