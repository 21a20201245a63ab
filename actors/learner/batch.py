"""What rollout actors drew, as tensors that a step learns from."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from actors.algorithms.losses import RolloutBatch
from actors.model.microbatch import WorkerPart
from actors.types import Prompt, Sample


@dataclass(frozen=True)
class Batching:
    """Where batches go, and the token that rows are filled up with."""

    padding: int
    device: torch.device

    def samples(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]
    ) -> RolloutBatch:
        """The samples of each prompt, with their rewards."""
        rows = [
            (prompt.token_ids, sample, reward, index)
            for index, (prompt, group, own) in enumerate(zip(prompts, groups, rewards, strict=True))
            for sample, reward in zip(group, own, strict=True)
        ]
        # The answers to a prompt together: they share a row. By length, so that little of a micro-batch is padding.
        lengths = [sum(len(sample.token_ids) for sample in group) for group in groups]
        rows.sort(key=lambda row: (len(row[0]) + lengths[row[3]], row[3], len(row[1].token_ids)))
        batch = self._pad(
            [prompt + sample.token_ids for prompt, sample, _, _ in rows],
            [len(prompt) for prompt, _, _, _ in rows],
            [sample.logprobs for _, sample, _, _ in rows],
            [sample.loss_mask for _, sample, _, _ in rows],
        )
        batch.rewards.copy_(torch.tensor([reward for _, _, reward, _ in rows]))
        batch.groups.copy_(torch.tensor([index for _, _, _, index in rows]))
        return batch

    def sequences(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> RolloutBatch:
        """Rows in that order, each an answer from `starts` on; without rewards and behavior."""
        lengths = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
        return self._pad(sequences, starts, [[0.0] * n for n in lengths], [[True] * n for n in lengths])

    def _pad(
        self,
        sequences: Sequence[list[int]],
        starts: Sequence[int],
        logprobs: Sequence[list[float]],
        drawn: Sequence[list[bool]],
    ) -> RolloutBatch:
        shape = (len(sequences), max(map(len, sequences)))
        ids = torch.full(shape, self.padding)
        answer, behavior = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for row, (sequence, start, values, mask) in enumerate(zip(sequences, starts, logprobs, drawn, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            answer[row, start : len(sequence)] = torch.tensor(mask)
            behavior[row, start : len(sequence)] = torch.tensor(values)
        rewards, groups = torch.zeros(shape[0]), torch.arange(shape[0])
        return RolloutBatch(*(tensor.to(self.device) for tensor in (ids, answer, behavior, rewards, groups)))


def length_correlation(groups: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]) -> float:
    """Pearson's correlation between length and reward among the answers to one prompt, over all prompts (their
    deviations from the prompt's means); 0 where one of them does not differ. Near 1, it is length that is rewarded
    (Singhal et al. 2023)."""
    pairs = [
        np.stack([np.array([sample.length for sample in group], float), np.array(own, float)])
        for group, own in zip(groups, rewards, strict=True)
    ]
    lengths, values = np.concatenate([pair - pair.mean(1, keepdims=True) for pair in pairs], axis=1)
    scale = float(np.sqrt((lengths**2).sum() * (values**2).sum()))
    return float((lengths * values).sum()) / scale if scale else 0.0


def figures_of(groups: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """What can be said of samples without a model: means over them all."""
    samples, flat = list(chain(*groups)), list(chain(*rewards))
    lengths = [sample.length for sample in samples]
    return {
        "reward": float(np.mean(flat)),
        "reward_deviation": float(np.std(flat)),
        "response_length": float(np.mean(lengths)),
        "length_correlation": length_correlation(groups, rewards),
        "repetition": float(np.mean([sample.repetition for sample in samples])),
        "stopped": float(np.mean([sample.finish_reason == "stop" for sample in samples])),
        "tokens": sum(lengths),
    }


# Which rows of a batch a worker of the learner computes, and in what micro-batches.
def microbatches(part: WorkerPart, rows: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """This worker's part of rows in micro-batches, and whether each counts: FSDP gathers parameters in step, so that
    all workers have as many, one that has too few rows some that do not count.

    Groups go to the workers in turn, whole where there are enough: rows of like length lie together, and the answers to
    a prompt share its row.

    Args:
        rows: numbers of rows, [N].
        groups: [N], which prompt each answers.
    """
    _, turn = groups.unique_consecutive(return_inverse=True)
    turn = turn.to(rows.device) if int(turn[-1]) + 1 >= part.workers else torch.arange(len(rows), device=rows.device)
    parts = [rows[turn % part.workers == rank] for rank in range(part.workers)]
    count = max(math.ceil(len(own) / part.micro_batch_rows) for own in parts)
    for piece in parts[part.rank].tensor_split(count):
        yield (piece, True) if len(piece) else (rows[:1], False)


def in_microbatches(part: WorkerPart, function: Callable[[RolloutBatch], Tensor], batch: RolloutBatch) -> Tensor:
    """A function's values [N, T] of all rows, on every worker."""
    found = torch.zeros_like(batch.behavior)
    for piece, counts in microbatches(part, torch.arange(len(batch.rewards), device=part.device), batch.groups):
        own = batch.rows(piece)
        values = function(own)
        if counts:
            found[piece, : own.width] = values
    return from_all_workers(part, found)


def from_all_workers(part: WorkerPart, found: Tensor) -> Tensor:
    """Fills in the rows that others have computed; they are 0 here."""
    if part.workers > 1:
        dist.all_reduce(found)
    return found
