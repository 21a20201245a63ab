"""RLHF's learner: the optimizer steps on samples and their rewards."""

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from actors.algorithms.divergence import DIVERGENCES, divergence_losses, kl_k1, kl_k3
from actors.algorithms.guardrails import has_limits, is_within
from actors.algorithms.losses import RolloutBatch, Targets, clip_for, importance_weights, old_logprobs_of
from actors.algorithms.registry import algorithm_named
from actors.algorithms.shaping import adapted_coefficient, at_last_token, overlong_penalty
from actors.learner.batch import check_finite, in_microbatches, sample_metrics, sum_of_workers
from actors.learner.state import LearnerState
from actors.model.completion_logprobs import completion_logprobs_and_entropy
from actors.model.microbatch import accumulate, grouped_microbatches, sum_over_workers
from actors.model.optim import learning_rate_factor
from actors.model.reward_head import token_values
from actors.model.sharding.fsdp import full_tensor
from actors.objectives.lm import LanguageObjective
from actors.trainer.data import Shard
from actors.types import Prompt, Sample
from cluster.errors import StageError
from cluster.recipe.rlhf.section import Rlhf

MAXIMUM_GRADIENT_NORM = 1.0
PRETRAIN_ROWS = 8
# The run page draws a stage's first metrics before the others.
HEADLINE_METRICS = ("reward", "kl_sequence", "teacher_kl_sequence", "response_length", "entropy", "overoptimization")


class Learner(LearnerState):
    """Takes one optimizer step or a few on each batch of samples.

    Of several workers, every one is given all samples and computes a part of them.

    Args:
        start: the fine-tuned model; also the reference.
        critic: the model from which a critic starts, for algorithms that have one.
        text: pre-training shards, mixed in when `settings.pretrain_mix` is set.
    """

    def __init__(self, settings: Rlhf, start: Path, critic: Path, text: list[Shard], seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.algorithm = algorithm_named(settings.algorithm)
        super().__init__(settings, start, critic if self.algorithm.value_losses else None, seed)
        self.clip, self.resolved = clip_for(settings), settings.resolved
        self.text = text
        self.seed = seed

    def step(
        self,
        prompts: list[Prompt],
        groups: list[list[Sample]],
        rewards: list[list[float]],
        measured: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Learns from the samples of several prompts.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            rewards: the reward of every sample.
            measured: further metrics of the policy, by which it may be beyond a limit.

        Returns:
            Metrics of the step, with those measured; `version` is that of the new weights.

        Raises:
            StageError: a reward is not finite, or a loss or gradient is not; no weight has been changed by it.
        """
        clock = time.monotonic()
        check_finite(prompts, rewards)
        samples = [sample for group in groups for sample in group]
        settings, resolved = self.settings, self.resolved
        batch = self.collator.rollouts(prompts, groups, rewards, settings.mask_truncated)
        targets = self._targets(batch)
        logprobs = torch.zeros_like(batch.behavior_logprobs)
        metrics: dict[str, list[float]] = {}
        before = self._copy() if has_limits(settings) else None
        learning_rate = self._set_learning_rates()
        order = np.random.default_rng([self.seed, self.version]).permutation(len(batch.rewards))
        # Dynamic sampling may leave fewer rows than there are minibatches.
        for number, rows in enumerate(np.array_split(order, min(resolved.minibatches, len(order)))):
            for name, value in self._update(batch, targets, torch.from_numpy(np.sort(rows)), logprobs, number).items():
                metrics.setdefault(name, []).append(value)
        sum_of_workers(self.worker, logprobs)
        start = _start_metrics(batch, logprobs if targets.old_logprobs is None else targets.old_logprobs, targets)
        metrics["kl_coefficient"] = [self.kl_coefficient]
        if settings.kl.target:
            self.kl_coefficient = adapted_coefficient(self.kl_coefficient, start["kl_sequence"], settings.kl.target)
        lag = [self.version - version for sample in samples for version in sample.weight_versions]
        self.version += 1
        own = sample_metrics(groups, rewards)
        self.first_length = self.first_length or own["response_length"]
        own["length_change"] = own["response_length"] / self.first_length
        own["masked"] = 1 - float(batch.loss_mask.any(1).float().mean())
        # With a teacher there is no reward to exploit.
        signs = {} if settings.teacher else self.tracker.measure(groups, rewards, first=self.version == 1)
        means = (
            {name: float(np.mean(values)) for name, values in metrics.items()} | start | own | signs | dict(measured)
        )
        if settings.teacher:
            # kl… names the divergence from the fine-tuned model, which is not the one measured here.
            means = {f"teacher_{name}" if name.startswith("kl") else name: value for name, value in means.items()}
        if before is not None and is_within(means, settings):
            self.last_within_limits = before
        return {
            **{name: means[name] for name in HEADLINE_METRICS if name in means},
            **means,
            "learning_rate": learning_rate,
            "staleness": float(np.mean(lag)),
            "learner_seconds": time.monotonic() - clock,
            "version": self.version,
        }

    def _set_learning_rates(self) -> float:
        """Sets the rates of the next step by the schedule, and returns the policy's."""
        settings = self.settings
        factor = learning_rate_factor(self.version, settings.steps, settings.warmup_share, settings.decay_share)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.peak_rates[name] * factor
        return settings.learning_rate * factor

    @torch.no_grad()
    def _targets(self, batch: RolloutBatch) -> Targets:
        """Computes the tensors that stay fixed over the optimizer steps on a batch."""
        # A step of one update computes the old log-probabilities itself: of five passes over the batch (a backward
        # pass counts for two), this saves one.
        charged = self.resolved.kl_charged_in if self.kl_coefficient else None
        known_later = self.resolved.minibatches == 1 and charged != "reward"
        temperature = self.settings.sampling.temperature
        old_logprobs = None if known_later else self._logprobs(self.sharded["policy"], batch, temperature)
        ref_logprobs = None
        if self.settings.needs_reference:
            with self._compared() as compared:
                ref_logprobs = self._logprobs(compared, batch, temperature)
        values = None if self.critic is None else in_microbatches(self.worker, self._values, batch)
        rewards = at_last_token(self._shaped_rewards(batch), batch.completion_mask)
        if charged == "reward" and old_logprobs is not None and ref_logprobs is not None:
            divergence = DIVERGENCES[self.resolved.kl_estimator](old_logprobs, ref_logprobs)
            rewards = rewards - self.kl_coefficient * divergence * batch.completion_mask
        advantages, returns = self.algorithm.targets(batch, rewards, values)
        return Targets(advantages, old_logprobs, ref_logprobs, values, returns)

    def _shaped_rewards(self, batch: RolloutBatch) -> Tensor:
        """Clips rewards and subtracts the penalty of overlong completions. -> [N]."""
        settings, rewards = self.settings, batch.rewards
        if settings.reward_clip:
            rewards = rewards.clamp(-settings.reward_clip, settings.reward_clip)
        penalty = overlong_penalty(
            batch.completion_mask.sum(1), settings.sampling.max_tokens, self.resolved.overlong_share
        )
        return rewards + penalty

    def _update(
        self, batch: RolloutBatch, targets: Targets, rows: Tensor, seen: Tensor, number: int
    ) -> dict[str, float]:
        """Takes an optimizer step on rows of a batch.

        Every term of the loss is divided by the total over all these rows, whatever the micro-batches.

        Args:
            seen: [N, T]; the log-probabilities before the step are written into its rows.
            number: of the step among those on the batch.
        """
        settings, algorithm, longest = self.settings, self.algorithm, self.settings.sampling.max_tokens
        learned, drawn = batch.loss_mask[rows], int(batch.completion_mask[rows].sum())
        tokens = int(learned.sum())
        total = max(1, algorithm.average(learned, longest)[1])
        divergence_total = max(1, algorithm.divergence_total(learned, longest))
        sums = dict.fromkeys(("loss", "entropy", "clip_fraction", "importance_limited", "kl_k3", "value_loss"), 0.0)
        for own, counts in grouped_microbatches(self.worker, rows, batch.groups[rows]):
            microbatch = batch.rows(own)
            drawn_mask, mask = microbatch.completion_mask, microbatch.loss_mask
            goal = targets.rows(own, microbatch.width)
            logprobs, entropy = self.sharded["policy"](
                completion_logprobs_and_entropy,
                microbatch.input_ids,
                drawn_mask,
                microbatch.groups,
                settings.sampling.temperature,
                entropy_learns=settings.entropy_bonus > 0,
            )
            losses, clipped = algorithm.token_losses(microbatch, goal, logprobs, self.clip)
            if settings.entropy_bonus:
                losses = losses - settings.entropy_bonus * entropy
            divisors, _ = algorithm.average(mask, longest)
            loss = (losses / divisors)[mask].sum() / total
            if self.resolved.kl_charged_in == "loss" and self.kl_coefficient:
                divergence = self._divergence_losses(microbatch, goal, logprobs)[mask].sum() / divergence_total
                loss = loss + self.kl_coefficient * divergence
            # FSDP averages over workers.
            weight = self.worker.world_size if counts else 0
            (loss * weight).backward()
            if algorithm.value_losses:
                value_losses = algorithm.value_losses(self._values(microbatch), goal, self.clip)
                value_loss = value_losses[mask].sum() / max(1, tokens)
                (value_loss * weight).backward()
                sums["value_loss"] += float(value_loss.detach()) if counts else 0.0
            if not counts:
                continue
            now = logprobs.detach()
            seen[own, : microbatch.width] = now
            _, limited = importance_weights(
                old_logprobs_of(goal, now), microbatch.behavior_logprobs, settings.importance
            )
            sums["loss"] += float(loss.detach())
            sums["entropy"] += float(entropy[drawn_mask].detach().sum()) / drawn
            sums["clip_fraction"] += float(clipped[mask].sum()) / max(1, tokens)
            sums["importance_limited"] += float(limited[mask].sum()) / max(1, tokens)
            if goal.ref_logprobs is not None:
                sums["kl_k3"] += float(kl_k3(now, goal.ref_logprobs)[drawn_mask].sum()) / drawn
        if not self.settings.needs_reference:
            del sums["kl_k3"]
        if settings.pretrain_mix:
            sums["pretrain_loss"] = self._mix_in_text(number)
        _, sums = sum_over_workers(0.0, sums, self.worker)
        norms = {
            name: float(full_tensor(clip_grad_norm_(model.parameters(), MAXIMUM_GRADIENT_NORM)))
            for name, model in self._trained_models().items()
        }
        found = {**sums, **{f"gradient norm of the {name}": norm for name, norm in norms.items()}}
        broken = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        # Where all answers are masked, gradients are 0, and AdamW would go on by its momentum.
        if not broken and (tokens or settings.pretrain_mix):
            for optimizer in self.optimizers.values():
                optimizer.step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if broken:
            raise StageError(f"RLHF diverged: {', '.join(broken)}; lower rlhf.learning_rate")
        return {**sums, "gradient_norm": norms["policy"]}

    def _divergence_losses(self, batch: RolloutBatch, targets: Targets, logprobs: Tensor) -> Tensor:
        """Computes the loss of the divergence of each token, corrected for the weights that drew it. [N, T]."""
        if targets.ref_logprobs is None:
            raise ValueError("a divergence needs the reference's log-probabilities")
        weights, _ = importance_weights(logprobs.detach(), batch.behavior_logprobs, self.settings.importance)
        return divergence_losses(
            self.resolved.kl_estimator, logprobs, targets.ref_logprobs, batch.completion_mask, weights
        )

    def _mix_in_text(self, number: int) -> float:
        """Adds gradients of next-token prediction against the alignment tax: PPO-ptx (Ouyang et al. 2022, eq. 2).

        Each optimizer step takes other text. Returns this worker's share of the loss.
        """
        objective = LanguageObjective()
        chance = np.random.default_rng([self.seed, self.version, 1 + number])
        shard = self.text[chance.integers(len(self.text))]
        rows = parquet.read_table(shard.path).take(chance.choice(shard.rows, min(PRETRAIN_ROWS, shard.rows), False))
        total = objective.count(objective.collate(rows))
        summed_loss = partial(self.sharded["policy"], objective.loss)
        return accumulate(summed_loss, objective, rows, total, self.worker, self.settings.pretrain_mix)[0]

    def _values(self, batch: RolloutBatch) -> Tensor:
        """Computes the value of the state before each token: the critic's output at the token before it. [N, T]."""
        values = self.sharded["critic"](token_values, batch.input_ids) - self.value_shift
        return torch.nn.functional.pad(values[:, :-1], (1, 0)) * batch.completion_mask


def _start_metrics(batch: RolloutBatch, old_logprobs: Tensor, targets: Targets) -> dict[str, float]:
    """Computes the policy's divergence from its reference, and from the engines, at the start of a step."""
    gap = (old_logprobs - batch.behavior_logprobs)[batch.completion_mask]
    found = {"behavior_gap": float(gap.abs().max())}
    if targets.ref_logprobs is not None:
        divergence = float(kl_k1(old_logprobs, targets.ref_logprobs).sum())
        found["kl"] = divergence / int(batch.completion_mask.sum())
        found["kl_sequence"] = divergence / len(batch.completion_mask)
    return found
