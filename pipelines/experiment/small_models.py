"""Trains a small model on a corpus, and measures it on other text: a task for each corpus and seed."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.recipe.experiment import Experiment
from cluster.recipe.model import Model
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.tasks import Phase, Report

_WARMUP, _DECAY, _WEIGHT_DECAY, _MAXIMUM_NORM = 0.05, 0.3, 0.1, 1.0


@dataclass(frozen=True)
class SmallModelPhase(Phase):
    """Trains a model on corpus `index // seeds` with seed `index % seeds`, and measures every document of the target.

    Attributes:
        corpora: folders of finished corpora.
        target: JSONL file with the texts to measure.
        settings: the settings of the models.
        first_seed: the first of the seeds of each corpus's models.
    """

    corpora: tuple[Path, ...]
    target: Path
    settings: Experiment
    first_seed: int

    def only(self, index: int) -> "SmallModelPhase":
        corpus, seed = divmod(index, self.settings.seeds)
        settings = self.settings.model_copy(update={"variants": {}})
        return replace(self, corpora=(self.corpora[corpus],), settings=settings, first_seed=self.first_seed + seed)

    def __call__(self, index: int) -> Report:
        """Returns the bits of each document, the rows that the corpus has and those that were trained on."""
        corpus, seed = divmod(index, self.settings.seeds)
        return _train_and_measure(self.corpora[corpus], self.target, self.settings, self.first_seed + seed)


def model_of(settings: Experiment) -> Model:
    """Describes the small models."""
    return Model(size=settings.size, vocabulary=settings.vocabulary, context=settings.context)


def _train_and_measure(corpus: Path, target: Path, settings: Experiment, seed: int) -> Report:
    # Imported by the worker alone: the driver needs no PyTorch.
    import torch
    from transformers import AutoTokenizer

    from actors.model.causal_lm import build

    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    end = tokenizer.pad_token_id
    shape = model_of(settings).model_copy(update={"vocabulary": len(tokenizer)})
    torch.manual_seed(seed)
    model = build(shape, seed, end_of_turn=end, padding=end)
    available, trained = _train(model, corpus / "shards" / "train", settings, seed)
    texts = [json.loads(line)["text"] for line in target.read_text(encoding="utf-8").splitlines()]
    return {"bits": _bits(model, tokenizer, texts, settings), "rows": available, "trained_rows": trained}


def _train(model: Any, shards: Path, settings: Experiment, seed: int) -> tuple[int, int]:
    """Trains on as many tokens as are set; returns the rows of the corpus and those trained on, repeats counted."""
    import torch

    from actors.model.optim import adamw, learning_rate_factor
    from actors.objectives.lm import LanguageObjective
    from pipelines.corpus.tokens.shards import read_rows

    rows, objective = read_rows([*shards.glob("*.parquet")]), LanguageObjective()
    steps = max(1, round(settings.tokens / (settings.batch_rows * settings.context)))
    optimizer = adamw([*model.parameters()], settings.learning_rate, _WEIGHT_DECAY)
    model.train()
    for step, chosen in enumerate(_batches(rows.num_rows, steps, settings.batch_rows, seed)):
        batch = objective.collate(rows.take(chosen))
        factor = learning_rate_factor(step, steps, _WARMUP, _DECAY)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        loss, _ = objective.loss(model, batch)
        (loss / max(1, objective.count(batch))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAXIMUM_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress()
    return rows.num_rows, steps * settings.batch_rows


def _batches(rows: int, steps: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the rows of each step: all of them in a random order before any of them again."""
    draw, held = np.random.default_rng(seed), np.empty(0, np.int64)
    for _ in range(steps):
        while len(held) < size:
            held = np.concatenate([held, draw.permutation(rows)])
        yield held[:size]
        held = held[size:]


def _bits(model: Any, tokenizer: Any, texts: list[str], settings: Experiment) -> list[float]:
    """Computes the bits of each text, in windows of the context.

    Nothing precedes the first token, from which to predict it: it gets the bits of an even choice, in every variant.
    """
    import torch

    from actors.model.forward import next_token_losses

    model.eval()
    nats = np.full(len(texts), math.log(len(tokenizer)))
    encoded = [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    # A window starts with the last token of the one before.
    starts = [
        (place, start) for place, ids in enumerate(encoded) for start in range(0, len(ids) - 1, settings.context - 1)
    ]
    for number in range(0, len(starts), settings.batch_rows):
        progress()
        chosen = starts[number : number + settings.batch_rows]
        rows = [torch.tensor(encoded[place][start : start + settings.context]) for place, start in chosen]
        masks = [torch.arange(len(row)) > 0 for row in rows]
        # Padding comes after the tokens of a window, which do not attend to it.
        window, mask = (torch.nn.utils.rnn.pad_sequence(given, batch_first=True) for given in (rows, masks))
        with torch.no_grad():
            losses = next_token_losses(model, window, mask).split(mask.sum(1).tolist())
        np.add.at(nats, [place for place, _ in chosen], [float(own.sum()) for own in losses])
    return (nats / math.log(2)).tolist()
