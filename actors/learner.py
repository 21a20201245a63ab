"""The learner actor: holds the policy that is trained, and the reference it must stay near."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoTokenizer

from actors.model import language
from actors.model.heads import load_reward_model, token_values
from actors.model.objectives import grpo, ppo
from actors.model.objectives.language import LanguageObjective
from actors.model.objectives.policy import RolloutBatch, Targets, answer_logprobs, kl_k1, kl_k3
from actors.model.optimiser import adamw
from actors.sample import Prompt, Sample
from actors.stream import Shard
from cluster.failures import StageError
from cluster.recipe import Rlhf

MAXIMUM_GRADIENT_NORM = 1.0
# The critic starts from the reward model and has to follow the policy: it learns faster than the policy moves.
CRITIC_RATE = 5.0
PRETRAIN_ROWS = 8


class Learner:
    """One optimiser step or a few on each batch of samples.

    Args:
        start: the fine-tuned model; also the reference.
        critic: the reward model, from which PPO's critic starts.
        text: pre-training shards, mixed in when `settings.pretrain_mix` is set.
    """

    def __init__(self, settings: Rlhf, start: Path, critic: Path, text: list[Shard], seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy = language.load(start).to(self.device)
        self.reference = language.load(start).to(self.device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.critic = load_reward_model(critic).to(self.device) if settings.algorithm == "ppo" else None
        self.optimisers = {"policy": adamw(list(self.policy.parameters()), settings.learning_rate, 0.0)}
        if self.critic is not None:
            parameters = list(self.critic.parameters())
            self.optimisers["critic"] = adamw(parameters, settings.learning_rate * CRITIC_RATE, 0.0)
        self.text = text
        self.seed = seed
        self.version = 0

    def weights(self) -> dict[str, Tensor]:
        """The policy's parameters on the CPU, by their Hugging Face names."""
        return {name: value.detach().cpu().clone() for name, value in self.policy.state_dict().items()}

    @torch.no_grad()
    def logprobs(self, sequences: list[list[int]], starts: list[int], temperature: float) -> list[list[float]]:
        """Log-probabilities of the tokens from `starts` on: what the parity gate compares with the engine's."""
        batch = self._pad(sequences, starts, [[0.0] * (len(s) - b) for s, b in zip(sequences, starts, strict=True)])
        values, _ = answer_logprobs(self.policy, batch, temperature)
        return [row[mask].tolist() for row, mask in zip(values, batch.answer, strict=True)]

    def step(self, prompts: list[Prompt], groups: list[list[Sample]], rewards: list[list[float]]) -> dict[str, float]:
        """Learns from the samples of several prompts.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            rewards: the reward of every sample.

        Returns:
            figures of the step; `version` is that of the new weights.

        Raises:
            StageError: the loss is not finite; the weights are as they were before.
        """
        clock = time.monotonic()
        samples = [sample for group in groups for sample in group]
        batch = self._batch(prompts, groups, rewards)
        targets, start = self._targets(batch)
        figures: dict[str, list[float]] = {}
        self.policy.train()
        order = np.random.default_rng([self.seed, self.version]).permutation(len(batch.rewards))
        for rows in np.array_split(order, self.settings.minibatches):
            for name, value in self._update(batch, targets, torch.from_numpy(rows)).items():
                figures.setdefault(name, []).append(value)
        lag = [self.version - version for sample in samples for version in sample.weight_versions]
        self.version += 1
        lengths = [len(sample.token_ids) for sample in samples]
        return {
            **{name: float(np.mean(values)) for name, values in figures.items()},
            **start,
            "reward": float(batch.rewards.mean()),
            "reward_deviation": float(batch.rewards.std(unbiased=False)),
            "response_length": float(np.mean(lengths)),
            "stopped": float(np.mean([sample.finish_reason == "stop" for sample in samples])),
            "staleness": float(np.mean(lag)),
            "tokens": sum(lengths),
            "learner_seconds": time.monotonic() - clock,
            "version": self.version,
        }

    def _targets(self, batch: RolloutBatch) -> tuple[Targets, dict[str, float]]:
        with torch.no_grad():
            proximal = self._in_pieces(lambda rows: self._logprobs(self.policy, batch.rows(rows)), batch)
            reference = self._in_pieces(lambda rows: self._logprobs(self.reference, batch.rows(rows)), batch)
            drawn = batch.answer
            figures = {
                "kl": float(kl_k1(proximal, reference).sum() / drawn.sum()),
                "kl_sequence": float(kl_k1(proximal, reference).sum() / len(drawn)),
                "behaviour_gap": float((proximal - batch.behaviour)[drawn].abs().max()),
            }
            if self.critic is None:
                return grpo.targets(batch, proximal, reference), figures
            values = self._in_pieces(lambda rows: self._values(batch.rows(rows)), batch)
            return ppo.targets(batch, proximal, reference, values, self.settings.kl_coefficient), figures

    def _update(self, batch: RolloutBatch, targets: Targets, rows: Tensor) -> dict[str, float]:
        """One optimiser step; every term is divided by the drawn tokens of all its rows, whatever the micro-batches."""
        settings = self.settings
        tokens = int(batch.answer[rows].sum())
        sums = dict.fromkeys(("loss", "entropy", "clip_fraction", "kl_k3", "value_loss"), 0.0)
        for piece in rows.split(settings.micro_batch_rows):
            part = batch.rows(piece)
            own = targets.rows(piece)
            logprobs, entropy = answer_logprobs(self.policy, part, settings.temperature)
            if self.critic is None:
                losses, clipped = grpo.token_losses(part, own, logprobs, settings.clip_range, settings.kl_coefficient)
            else:
                losses, clipped = ppo.token_losses(part, own, logprobs, settings.clip_range)
                value_losses = ppo.value_losses(self._values(part), own, settings.clip_range)
                value_loss = value_losses[part.answer].sum() / tokens
                value_loss.backward()
                sums["value_loss"] += float(value_loss.detach())
            loss = losses[part.answer].sum() / tokens
            loss.backward()
            sums["loss"] += float(loss.detach())
            sums["entropy"] += float(entropy[part.answer].detach().sum()) / tokens
            sums["clip_fraction"] += float(clipped[part.answer].sum()) / tokens
            sums["kl_k3"] += float(kl_k3(logprobs.detach(), own.reference)[part.answer].sum()) / tokens
        if settings.pretrain_mix:
            sums["pretrain_loss"] = self._mix_in_text()
        norm = float(clip_grad_norm_(self.policy.parameters(), MAXIMUM_GRADIENT_NORM))
        if not np.isfinite([sums["loss"], norm]).all():
            self._forget_gradients()
            raise StageError(f"the RLHF loss is {sums['loss']}, its gradient norm {norm}: lower rlhf.learning_rate")
        if self.critic is not None:
            clip_grad_norm_(self.critic.parameters(), MAXIMUM_GRADIENT_NORM)
        for optimiser in self.optimisers.values():
            optimiser.step()
        self._forget_gradients()
        return {**sums, "gradient_norm": norm}

    def _forget_gradients(self) -> None:
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def _mix_in_text(self) -> float:
        """PPO-ptx (Ouyang et al. 2022, eq. 2): gradients of next-word prediction against the alignment tax."""
        objective = LanguageObjective()
        chance = np.random.default_rng([self.seed, self.version, 1])
        shard = self.text[chance.integers(len(self.text))]
        rows = parquet.read_table(shard.path).take(chance.choice(shard.rows, min(PRETRAIN_ROWS, shard.rows), False))
        batch = objective.collate(rows)
        batch = type(batch)(**{name: value.to(self.device) for name, value in vars(batch).items()})
        loss = objective.loss(self.policy, batch)[0] / max(1, objective.count(batch))
        (self.settings.pretrain_mix * loss).backward()
        return float(loss.detach())

    def _logprobs(self, model: Any, batch: RolloutBatch) -> Tensor:
        return answer_logprobs(model, batch, self.settings.temperature)[0]

    def _values(self, batch: RolloutBatch) -> Tensor:
        """Value of the state before each token: the critic's output at the token before it."""
        values = token_values(self.critic, batch.input_ids)
        return torch.nn.functional.pad(values[:, :-1], (1, 0)) * batch.answer

    def _in_pieces(self, function: Callable[[Tensor], Tensor], batch: RolloutBatch) -> Tensor:
        rows = torch.arange(len(batch.rewards), device=self.device)
        return torch.cat([function(piece) for piece in rows.split(self.settings.micro_batch_rows)])

    def _batch(self, prompts: list[Prompt], groups: list[list[Sample]], rewards: list[list[float]]) -> RolloutBatch:
        rows = [(prompt, sample) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
        batch = self._pad(
            [prompt.token_ids + sample.token_ids for prompt, sample in rows],
            [len(prompt.token_ids) for prompt, _ in rows],
            [sample.logprobs for _, sample in rows],
        )
        batch.rewards.copy_(torch.tensor([reward for group in rewards for reward in group]))
        batch.groups.copy_(torch.tensor([index for index, group in enumerate(groups) for _ in group]))
        return batch

    def _pad(self, sequences: list[list[int]], starts: list[int], logprobs: list[list[float]]) -> RolloutBatch:
        shape = (len(sequences), max(map(len, sequences)))
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        answer, behaviour = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for row, (sequence, start, values) in enumerate(zip(sequences, starts, logprobs, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            answer[row, start : len(sequence)] = True
            behaviour[row, start : len(sequence)] = torch.tensor(values)
        rewards, groups = torch.zeros(shape[0]), torch.zeros(shape[0], dtype=torch.long)
        return RolloutBatch(*(tensor.to(self.device) for tensor in (ids, answer, behaviour, rewards, groups)))

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes weights, optimisers and `extra` (JSON) to the side and renames: a kill leaves the old or the new."""
        side = folder.with_name(f"{folder.name}.side")
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
        for name, model in self._models().items():
            save_file({key: value.contiguous() for key, value in _untied(model).items()}, side / f"{name}.safetensors")
            save_file(_flat(self.optimisers[name]), side / f"{name}-optimiser.safetensors")
        (side / "state.json").write_text(json.dumps({"version": self.version, **extra}))
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        side.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Goes on from what `save` wrote; returns its `extra`, or None if there is nothing."""
        old = folder.with_name(f"{folder.name}.old")
        if not folder.exists() and old.exists():
            old.rename(folder)
        if not folder.exists():
            return None
        for name, model in self._models().items():
            model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
            _unflat(self.optimisers[name], load_file(folder / f"{name}-optimiser.safetensors"))
        state = json.loads((folder / "state.json").read_text())
        self.version = state["version"]
        return state

    def export(self, folder: Path) -> None:
        """Writes the policy as a Hugging Face directory."""
        language.save(self.policy, self.tokenizer, folder)

    def _models(self) -> dict[str, Any]:
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}


def _untied(model: Any) -> dict[str, Tensor]:
    """Every parameter once: tied ones have one name in `named_parameters`."""
    return {name: value.detach() for name, value in model.named_parameters()}


def _flat(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: safetensors holds no nesting."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, part in state.items() for key, value in part.items()}


def _unflat(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
