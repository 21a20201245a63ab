"""Samples of rollout actors as the tensors of a learner's step, and their metrics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from actors.algorithms.losses import RolloutBatch
from actors.model.completion_logprobs import pad_completions
from actors.model.microbatch import DataParallelRank, grouped_microbatches, pad_rows
from actors.overoptimization.signs import within_prompt_correlation
from actors.types import Prompt, Sample
from cluster.errors import StageError


@dataclass(frozen=True)
class Collator:
    """Makes batches on a device; `padding` is the token id that rows are filled up with."""

    padding: int
    device: torch.device

    def rollouts(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        rewards: Sequence[Sequence[float]],
        mask_truncated: bool = False,
    ) -> RolloutBatch:
        """Makes a batch of the samples of each prompt and their rewards.

        Args:
            mask_truncated: whether nothing is learned from samples that were cut at the most tokens of an answer.
        """
        rows = [
            (prompt.token_ids, sample, reward, index)
            for index, (prompt, group, own) in enumerate(zip(prompts, groups, rewards, strict=True))
            for sample, reward in zip(group, own, strict=True)
        ]
        # The completions of a prompt together: they share a row. By length, so that little of a micro-batch is padding.
        lengths = [sum(len(sample.token_ids) for sample in group) for group in groups]
        rows.sort(key=lambda row: (len(row[0]) + lengths[row[3]], row[3], len(row[1].token_ids)))
        drawn = pad_rows([[False] * len(prompt) + sample.loss_mask for prompt, sample, _, _ in rows], False)
        whole = torch.tensor([not mask_truncated or sample.finish_reason != "length" for _, sample, _, _ in rows])
        return self._on_device(
            pad_rows([prompt + sample.token_ids for prompt, sample, _, _ in rows], self.padding),
            drawn,
            pad_rows([[0.0] * len(prompt) + sample.logprobs for prompt, sample, _, _ in rows], 0.0),
            torch.tensor([reward for _, _, reward, _ in rows]),
            torch.tensor([index for _, _, _, index in rows]),
            drawn & whole.unsqueeze(1),
        )

    def sequences(self, sequences: Sequence[list[int]], prompt_lengths: Sequence[int]) -> RolloutBatch:
        """Makes a batch of rows in the given order, without rewards and behavior log-probabilities."""
        ids, completion_mask = pad_completions(sequences, prompt_lengths, self.padding)
        rewards, groups = torch.zeros(len(ids)), torch.arange(len(ids))
        return self._on_device(ids, completion_mask, torch.zeros(ids.shape), rewards, groups, completion_mask)

    def _on_device(self, *tensors: Tensor) -> RolloutBatch:
        return RolloutBatch(*(tensor.to(self.device) for tensor in tensors))


def in_microbatches(
    worker: DataParallelRank, function: Callable[[RolloutBatch], Tensor], batch: RolloutBatch
) -> Tensor:
    """Applies a function to all rows, of which each worker computes its own micro-batches. -> [N, T], on every
    worker."""
    found = torch.zeros_like(batch.behavior_logprobs)
    numbers = torch.arange(len(batch.rewards), device=worker.device)
    for rows, counts in grouped_microbatches(worker, numbers, batch.groups):
        microbatch = batch.rows(rows)
        values = function(microbatch)
        if counts:
            found[rows, : microbatch.width] = values
    return sum_of_workers(worker, found)


def sum_of_workers(worker: DataParallelRank, values: Tensor) -> Tensor:
    """Fills in the rows that other workers computed; they are 0 here."""
    if worker.world_size > 1:
        dist.all_reduce(values)
    return values


def sample_metrics(groups: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """Computes the metrics of samples that need no model: means over all of them."""
    samples, flat = list(chain(*groups)), list(chain(*rewards))
    lengths = [sample.length for sample in samples]
    return {
        "reward": float(np.mean(flat)),
        "reward_deviation": float(np.std(flat)),
        "response_length": float(np.mean(lengths)),
        # Near 1, the reward is one of length (Singhal et al. 2023).
        "length_correlation": within_prompt_correlation(
            [[sample.length for sample in group] for group in groups], rewards
        ),
        "repetition": float(np.mean([sample.repetition for sample in samples])),
        "stopped": float(np.mean([sample.finish_reason == "stop" for sample in samples])),
        "tokens": sum(lengths),
    }


def check_finite(prompts: Sequence[Prompt], rewards: Sequence[Sequence[float]]) -> None:
    """Raises a StageError that names the first reward that is not finite."""
    for prompt, group in zip(prompts, rewards, strict=True):
        for index, reward in enumerate(group):
            if not math.isfinite(reward):
                raise StageError(
                    f"the reward of sample {index} of prompt {prompt.name!r} is {reward}: nothing was learned"
                )
