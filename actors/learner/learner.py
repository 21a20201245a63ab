"""The learner actor: holds the policy that is trained, and the reference it must stay near."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoTokenizer

from actors.algorithms.guardrails import has_limits, is_within
from actors.algorithms.losses import (
    DIVERGENCES,
    RolloutBatch,
    Targets,
    answer_logprobs,
    answer_logprobs_and_entropy,
    kl_k1,
    kl_k3,
)
from actors.algorithms.registry import ALGORITHMS
from actors.algorithms.shaping import adapted_coefficient, at_last_token, overlong_penalty
from actors.learner.batch import Batching, figures_of, from_all_workers, in_microbatches, microbatches
from actors.learner.checkpoint import load_checkpoint, save_checkpoint, take_over, trained
from actors.model import causal_lm, lora
from actors.model.fsdp import FSDPModule, full_tensor, gathered
from actors.model.microbatch import WorkerPart, sum_over_workers, to_device
from actors.model.optim import adamw
from actors.model.perf import engine_precision
from actors.model.reward_head import load_reward_model, token_values
from actors.objectives.lm import LanguageObjective
from actors.trainer.data import Shard
from actors.types import Prompt, Sample
from cluster.errors import StageError
from cluster.recipe.rlhf import Rlhf

MAXIMUM_GRADIENT_NORM = 1.0
# The critic starts from the reward model and has to follow the policy: it learns faster than the policy moves.
CRITIC_RATE = 5.0
PRETRAIN_ROWS = 8
# The run page draws a stage's first figures before the others.
HEADLINE_METRICS = ("reward", "kl_sequence", "response_length", "entropy")


class Learner:
    """One optimizer step or a few on each batch of samples.

    Where a process group has been set up, models, gradients and optimizers are spread over its workers (FSDP2). Every
    one is given all samples and computes a part of them; all must be called alike.

    Args:
        start: the fine-tuned model; also the reference, which with `settings.lora` is the policy without its adapters.
        critic: the model from which a critic starts, for algorithms that have one.
        text: pre-training shards, mixed in when `settings.pretrain_mix` is set.
    """

    def __init__(self, settings: Rlhf, start: Path, critic: Path, text: list[Shard], seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.settings = settings
        self.algorithm = ALGORITHMS[settings.algorithm]
        self.clip = self.algorithm.clip_for(settings)
        self.kl_in = settings.kl.charged_in or self.algorithm.kl_in
        self.kl = DIVERGENCES[settings.kl.estimator or ("k1" if self.kl_in == "reward" else "k3")]
        self.kl_coefficient = settings.kl.coefficient
        self.part = _own_part(settings)
        self.policy = causal_lm.load(start)
        self.reference: Any = None
        if settings.lora:
            lora.add(self.policy, settings.lora, seed)
        else:
            self.reference = causal_lm.load(start).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.critic = load_reward_model(critic) if self.algorithm.value_losses else None
        models = {"policy": self.policy, "reference": self.reference, "critic": self.critic}
        where = self.part.workers, self.part.device, self.part.autocast
        self.spread = {name: FSDPModule(model, *where) for name, model in models.items() if model is not None}
        self.optimizers = {"policy": adamw(list(self.policy.parameters()), settings.learning_rate, 0.0)}
        if self.critic is not None:
            parameters = list(self.critic.parameters())
            self.optimizers["critic"] = adamw(parameters, settings.learning_rate * CRITIC_RATE, 0.0)
        self.batching = Batching(self.tokenizer.pad_token_id, self.part.device)
        self.text = text
        self.seed = seed
        self.version = 0
        self.kept: dict[str, Tensor] | None = None
        self.first_length: float | None = None

    def weights(self) -> dict[str, Tensor]:
        """The policy's parameters on the CPU, by their Hugging Face names, without a head that is tied to the
        embeddings; with `settings.lora` only its adapters, as `adapters.scaled` gives them. The first of several
        workers gives them, the others nothing. They may share memory with the policy, and change with its next step."""
        if self.settings.lora:
            return lora.scaled(self.policy, gathered(trained(self.policy), keep=self.part.rank == 0))
        return self._whole()

    def _whole(self) -> dict[str, Tensor]:
        tied = "lm_head.weight" if self.policy.config.tie_word_embeddings else None
        own = {name: value for name, value in self.policy.state_dict().items() if name != tied}
        return gathered(own, keep=self.part.rank == 0)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in trained(self.policy).items()}

    @contextmanager
    def _fine_tuned(self) -> Iterator[FSDPModule]:
        if self.reference is not None:
            yield self.spread["reference"]
            return
        with lora.switched_off(self.policy):
            yield self.spread["policy"]

    @torch.no_grad()
    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool = False
    ) -> list[list[float]]:
        """Log-probabilities of the tokens from `starts` on, by the policy or by the fine-tuned model that it was."""
        batch = self.batching.sequences(sequences, starts)
        compute = partial(_logprobs, temperature=temperature)
        if fine_tuned:
            with self._fine_tuned() as model:
                values = in_microbatches(self.part, partial(compute, model), batch)
        else:
            values = in_microbatches(self.part, partial(compute, self.spread["policy"]), batch)
        return [row[mask].tolist() for row, mask in zip(values, batch.answer, strict=True)]

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
            measured: what else is known of the policy, by which it may be beyond a limit.

        Returns:
            figures of the step, with those measured; `version` is that of the new weights.

        Raises:
            StageError: a reward is not finite, or a loss or gradient is; no weight has been changed by it.
        """
        clock = time.monotonic()
        _check_finite(prompts, rewards)
        samples = [sample for group in groups for sample in group]
        settings, batch = self.settings, self.batching.samples(prompts, groups, rewards)
        targets = self._targets(batch)
        seen = torch.zeros_like(batch.behavior)
        figures: dict[str, list[float]] = {}
        before = self._copy() if has_limits(settings) else None
        self.policy.train()
        order = np.random.default_rng([self.seed, self.version]).permutation(len(batch.rewards))
        # Dynamic sampling may leave fewer rows than there are minibatches.
        for number, rows in enumerate(np.array_split(order, min(settings.minibatches, len(order)))):
            for name, value in self._update(batch, targets, torch.from_numpy(np.sort(rows)), seen, number).items():
                figures.setdefault(name, []).append(value)
        from_all_workers(self.part, seen)
        start = _start(batch, seen if targets.proximal is None else targets.proximal, targets.reference)
        figures["kl_coefficient"] = [self.kl_coefficient]
        if settings.kl.target:
            self.kl_coefficient = adapted_coefficient(self.kl_coefficient, start["kl_sequence"], settings.kl.target)
        lag = [self.version - version for sample in samples for version in sample.weight_versions]
        self.version += 1
        own = figures_of(groups, rewards)
        self.first_length = self.first_length or own["response_length"]
        own["length_change"] = own["response_length"] / self.first_length
        means = {name: float(np.mean(values)) for name, values in figures.items()} | start | own | dict(measured)
        if before is not None and is_within(means, settings):
            self.kept = before
        return {
            **{name: means[name] for name in HEADLINE_METRICS},
            **means,
            "staleness": float(np.mean(lag)),
            "learner_seconds": time.monotonic() - clock,
            "version": self.version,
        }

    @torch.no_grad()
    def _targets(self, batch: RolloutBatch) -> Targets:
        """What the samples taught."""
        # Of five passes over the batch (a backward pass counts for two), this saves one.
        known_later = self.settings.minibatches == 1 and self.kl_in == "loss"
        compute = partial(_logprobs, temperature=self.settings.sampling.temperature)
        proximal = None if known_later else in_microbatches(self.part, partial(compute, self.spread["policy"]), batch)
        with self._fine_tuned() as fine_tuned:
            reference = in_microbatches(self.part, partial(compute, fine_tuned), batch)
        values = None if self.critic is None else in_microbatches(self.part, self._values, batch)
        rewards = at_last_token(self._shaped(batch), batch.answer)
        if proximal is not None and self.kl_in == "reward":
            rewards = rewards - self.kl_coefficient * self.kl(proximal, reference) * batch.answer
        advantages, returns = self.algorithm.targets(batch, rewards, values)
        return Targets(advantages, proximal, reference, values, returns)

    def _shaped(self, batch: RolloutBatch) -> Tensor:
        settings, rewards = self.settings, batch.rewards
        if settings.reward_clip:
            rewards = rewards.clamp(-settings.reward_clip, settings.reward_clip)
        share = self.algorithm.overlong_share if settings.overlong_share is None else settings.overlong_share
        return rewards + overlong_penalty(batch.answer.sum(1), settings.sampling.max_tokens, share)

    def _update(
        self, batch: RolloutBatch, targets: Targets, rows: Tensor, seen: Tensor, number: int
    ) -> dict[str, float]:
        """The optimizer step of that number on a batch; every term is divided by what all its rows come to, whatever
        the micro-batches.

        The log-probabilities before it go into the rows of `seen` [N, T].
        """
        settings, algorithm = self.settings, self.algorithm
        tokens = int(batch.answer[rows].sum())
        _, total = algorithm.average(batch.answer[rows], settings.sampling.max_tokens)
        sums = dict.fromkeys(("loss", "entropy", "clip_fraction", "kl_k3", "value_loss"), 0.0)
        for piece, counts in microbatches(self.part, rows, batch.groups[rows]):
            part = batch.rows(piece)
            own = targets.rows(piece, part.width)
            logprobs, entropy = self.spread["policy"](
                answer_logprobs_and_entropy,
                part,
                settings.sampling.temperature,
                entropy_learns=settings.entropy_bonus > 0,
            )
            losses, clipped = algorithm.token_losses(part, own, logprobs, self.clip)
            if self.kl_in == "loss":
                losses = losses + self.kl_coefficient * self.kl(logprobs, own.reference)
            if settings.entropy_bonus:
                losses = losses - settings.entropy_bonus * entropy
            divisors, _ = algorithm.average(part.answer, settings.sampling.max_tokens)
            loss = (losses / divisors)[part.answer].sum() / total
            # FSDP averages over workers.
            weight = self.part.workers if counts else 0
            (loss * weight).backward()
            if algorithm.value_losses:
                value_losses = algorithm.value_losses(self._values(part), own, self.clip)
                value_loss = value_losses[part.answer].sum() / tokens
                (value_loss * weight).backward()
                sums["value_loss"] += float(value_loss.detach()) if counts else 0.0
            if not counts:
                continue
            seen[piece, : part.width] = logprobs.detach()
            sums["loss"] += float(loss.detach())
            sums["entropy"] += float(entropy[part.answer].detach().sum()) / tokens
            sums["clip_fraction"] += float(clipped[part.answer].sum()) / tokens
            sums["kl_k3"] += float(kl_k3(logprobs.detach(), own.reference)[part.answer].sum()) / tokens
        if settings.pretrain_mix:
            sums["pretrain_loss"] = self._mix_in_text(number)
        _, sums = sum_over_workers(0.0, sums, self.part)
        norms = {
            name: float(full_tensor(clip_grad_norm_(m.parameters(), MAXIMUM_GRADIENT_NORM)))
            for name, m in self._models().items()
        }
        found = {**sums, **{f"gradient norm of the {name}": norm for name, norm in norms.items()}}
        broken = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        if broken:
            self._forget_gradients()
            raise StageError(f"RLHF diverged: {', '.join(broken)}; lower rlhf.learning_rate")
        for optimizer in self.optimizers.values():
            optimizer.step()
        self._forget_gradients()
        return {**sums, "gradient_norm": norms["policy"]}

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def _mix_in_text(self, number: int) -> float:
        """PPO-ptx (Ouyang et al. 2022, eq. 2): gradients of next-word prediction against the alignment tax, on other
        text in each optimizer step; this worker's share of the loss."""
        objective = LanguageObjective()
        chance = np.random.default_rng([self.seed, self.version, 1 + number])
        shard = self.text[chance.integers(len(self.text))]
        rows = parquet.read_table(shard.path).take(chance.choice(shard.rows, min(PRETRAIN_ROWS, shard.rows), False))
        total, found, numbers = max(1, objective.count(objective.collate(rows))), 0.0, torch.arange(rows.num_rows)
        for piece, counts in microbatches(self.part, numbers, numbers):
            batch = to_device(objective.collate(rows.take(piece.numpy())), self.part.device)
            loss = self.spread["policy"](objective.loss, batch)[0] / total
            (self.settings.pretrain_mix * loss * (self.part.workers if counts else 0)).backward()
            found += float(loss.detach()) if counts else 0.0
        return found

    def _values(self, batch: RolloutBatch) -> Tensor:
        """Value of the state before each token: the critic's output at the token before it."""
        values = self.spread["critic"](token_values, batch.input_ids)
        return torch.nn.functional.pad(values[:, :-1], (1, 0)) * batch.answer

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes weights, optimizers and `extra` (JSON): a kill leaves the old or the new."""
        own = {"version": self.version, "kl_coefficient": self.kl_coefficient, "first_length": self.first_length}
        state = {**own, **extra}
        save_checkpoint(folder, self._models(), self.optimizers, self.kept, state, first=self.part.rank == 0)

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Goes on from what `save` wrote; returns its `extra`, or None if there is nothing."""
        loaded = load_checkpoint(folder, self._models(), self.optimizers)
        if loaded is None:
            return None
        self.kept, state = loaded
        self.version, self.kl_coefficient = state["version"], state["kl_coefficient"]
        self.first_length = state["first_length"]
        return state

    def export(self, folder: Path, within_limits: bool) -> bool:
        """Writes the policy as `language.save` does.

        Args:
            within_limits: whether to write the last policy that was measured to be within the recipe's limits, else
                the fine-tuned model, and not the newest; the learner then holds it.

        Returns:
            Whether there was such a policy.
        """
        if within_limits:
            take_over(self.policy, self.kept or self._untrained())
        weights = self._whole()
        if self.part.rank == 0:
            causal_lm.save(self.policy, self.tokenizer, folder, weights)
        return self.kept is not None

    def _untrained(self) -> dict[str, Tensor]:
        """What makes the policy the fine-tuned model again."""
        if self.settings.lora:
            ups = {name: value for name, value in trained(self.policy).items() if name.endswith(lora.UP)}
            return {name: torch.zeros_like(value) for name, value in ups.items()}
        return dict(self.reference.named_parameters())

    def _models(self) -> dict[str, Any]:
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}


def _own_part(settings: Rlhf) -> WorkerPart:
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return WorkerPart(
        rank, workers, settings.micro_batch_rows, settings.precision or engine_precision(device.type), device
    )


def _logprobs(model: FSDPModule, batch: RolloutBatch, temperature: float) -> Tensor:
    return model(answer_logprobs, batch, temperature)


def _start(batch: RolloutBatch, proximal: Tensor, reference: Tensor) -> dict[str, float]:
    """Figures of the models at the start of a step."""
    divergence = float(kl_k1(proximal, reference).sum())
    return {
        "kl": divergence / int(batch.answer.sum()),
        "kl_sequence": divergence / len(batch.answer),
        "behavior_gap": float((proximal - batch.behavior)[batch.answer].abs().max()),
    }


def _check_finite(prompts: list[Prompt], rewards: list[list[float]]) -> None:
    for prompt, group in zip(prompts, rewards, strict=True):
        for index, reward in enumerate(group):
            if not math.isfinite(reward):
                raise StageError(
                    f"the reward of sample {index} of prompt {prompt.name!r} is {reward}: nothing was learned"
                )
