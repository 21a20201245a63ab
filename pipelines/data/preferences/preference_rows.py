"""Rows to optimize preferences on: the pairs of rankings, or single answers that are good or bad."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.errors import UserError


@dataclass(frozen=True)
class JudgedAnswers:
    """A row to learn from.

    Attributes:
        prompt: token ids.
        answers: token ids of the better answer and the worse one; of a single answer, it and one to another prompt.
        weight: the weight in the loss.
        good: 1 of a single good answer, -1 of a bad one, 0 of a pair.
    """

    prompt: list[int]
    answers: tuple[list[int], list[int]]
    weight: float
    good: int = 0


def pairs_of(row: Mapping[str, Any], weight: float = 1.0) -> Iterator[JudgedAnswers]:
    """Yields every pair in a ranking that is not a tie."""
    answers = sorted(zip(row["ranks"], row["answers"], strict=True))
    for (high, chosen), (low, rejected) in combinations(answers, 2):
        if high < low:
            yield JudgedAnswers(row["prompt_token_ids"], (chosen, rejected), weight)


def answers_of(row: Mapping[str, Any], weight: float = 1.0) -> Iterator[JudgedAnswers]:
    """Yields the good and the bad answers of a judgement, for KTO.

    The answers of a pair are good and bad (Ethayarajh et al. 2024, section 4.1). In a ranking of K answers each is in
    K - 1 pairs; where it is good in as many as it is bad in, the gradients cancel. It is therefore good if it wins
    more pairs than it loses, and its weight is the difference over K - 1.
    """
    prompt, ranks = row["prompt_token_ids"], row["ranks"]
    if row.get("good") is not None:
        yield JudgedAnswers(prompt, (row["answers"][0], []), weight, 1 if row["good"] else -1)
        return
    for rank, answer in zip(ranks, row["answers"], strict=True):
        balance = sum((rank < other) - (rank > other) for other in ranks)
        if balance:
            share = abs(balance) / (len(ranks) - 1)
            yield JudgedAnswers(prompt, (answer, []), weight * share, 1 if balance > 0 else -1)


def with_mismatched(rows: Sequence[JudgedAnswers], context: int, seed: int) -> list[JudgedAnswers]:
    """Adds to each answer one to another prompt, cut to the room behind its own prompt, for KTO's reference point.

    Raises:
        UserError: all answers are to one prompt.
    """
    order = random.Random(f"mismatched {seed}").sample(list(rows), len(rows))
    paired = []
    for place, row in enumerate(order):
        later = (order[(place + step) % len(order)] for step in range(1, len(order)))
        other = next((one.answers[0] for one in later if one.prompt != row.prompt), None)
        if other is None:
            raise UserError("loss kto compares with answers to other prompts, and all judgements are of one prompt")
        paired.append(replace(row, answers=(row.answers[0], other[: context - len(row.prompt)])))
    return paired


def write_shard(rows: Sequence[JudgedAnswers], folder: Path) -> None:
    """Writes the rows, with weights whose mean is 1, so that they do not change the learning rate."""
    folder.mkdir(parents=True, exist_ok=True)
    sequences = [[row.prompt + answer for answer in row.answers] for row in rows]
    mean = sum(row.weight for row in rows) / len(rows)
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "input_ids": pa.array([one + other for one, other in sequences], pa.list_(pa.int32())),
            "lengths": pa.array([[len(one), len(other)] for one, other in sequences], pa.list_(pa.int32())),
            "prompt_length": pa.array([len(row.prompt) for row in rows], pa.int32()),
            "good": pa.array([row.good for row in rows], pa.int8()),
            "weight": pa.array([row.weight / mean for row in rows], pa.float32()),
        }
    )
    parquet.write_table(table, folder / "shard-00000.parquet")
