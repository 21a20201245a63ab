"""The models of RLHF's learner, their optimizers, and the checkpoints and policies written of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from actors.algorithms.losses import RolloutBatch
from actors.learner.batch import Collator, in_microbatches
from actors.model import causal_lm, lora
from actors.model.completion_logprobs import completion_logprobs
from actors.model.dropout import without_dropout
from actors.model.microbatch import DataParallelRank
from actors.model.optim import adamw
from actors.model.perf import engine_precision
from actors.model.reward_head import load_reward_model, scale_head
from actors.model.sharding.export import export_shared
from actors.model.sharding.fsdp import ShardedModel, gather_to_cpu, parameters, set_trained, trained
from actors.model.sharding.weights import refill
from actors.overoptimization.tracker import OveroptimizationTracker
from actors.trainer.checkpoint import Checkpoints, load_training_state, read, read_extra, training_state
from actors.types import reward_scale_file
from cluster.errors import UserError
from cluster.recipe.rlhf.section import Rlhf

# The critic's learning rate in multiples of the policy's: it starts from the reward model and has to follow the policy.
CRITIC_RATE = 5.0
# In a checkpoint, the name of the last policy within the limits.
WITHIN_LIMITS = "last_within_limits"


class LearnerState:
    """Holds the policy, the reference it must stay near, the critic of algorithms that have one, and their optimizers.

    Where a process group has been set up, models, gradients and optimizers are sharded over its workers (FSDP2), and
    every method must be called on all of them.

    Args:
        start: the fine-tuned model; also the reference, which with `settings.lora` is the policy without its adapters,
            and which is held only where every step computes it (`settings.needs_reference`).
        critic: the model from which the critic starts; None without one.

    Attributes:
        version: the number of steps that the policy has learned from.
        kl_coefficient: the weight of the divergence from the reference.
        first_length: the mean number of tokens that the first step's samples have.
        tracker: of the signs of over-optimization.
        last_within_limits: the trained weights of the last policy that was measured to be within the recipe's limits.
    """

    def __init__(self, settings: Rlhf, start: Path, critic: Path | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.settings, self.start = settings, start
        self.worker = _this_worker(settings)
        self.policy = causal_lm.load(start)
        self.reference: Any = None
        self.teacher: Any = None
        if settings.lora:
            lora.add(self.policy, settings.lora, seed)
        if settings.teacher:
            self.teacher = causal_lm.load(settings.teacher).eval().requires_grad_(False)
        elif settings.needs_reference and not settings.lora:
            self.reference = self._load_reference()
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.critic: Any = None
        self.value_shift = 0.0
        if critic is not None:
            self.critic, self.value_shift = _load_critic(critic, settings)
        models = {"policy": self.policy, "reference": self.reference, "teacher": self.teacher, "critic": self.critic}
        for model in (self.policy, self.critic):
            if model is not None:
                if settings.recompute_activations:
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                without_dropout(model)
        where = self.worker.world_size, self.worker.device, self.worker.autocast
        self.sharded = {name: ShardedModel(model, *where) for name, model in models.items() if model is not None}
        self.peak_rates = {"policy": settings.learning_rate, "critic": settings.learning_rate * CRITIC_RATE}
        learning = {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})
        self.optimizers = {
            name: adamw(list(model.parameters()), self.peak_rates[name], 0.0) for name, model in learning.items()
        }
        self.collator = Collator(self.tokenizer.pad_token_id, self.worker.device)
        self.version = 0
        self.kl_coefficient = settings.resolved.kl_coefficient
        self.last_within_limits: dict[str, Tensor] | None = None
        self.first_length: float | None = None
        self.tracker = OveroptimizationTracker()

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Returns the policy's parameters on the CPU, by their Hugging Face names, without a head that is tied to the
        embeddings; with `settings.lora` only its adapters, as `lora.scaled_adapters` gives them.

        Of several workers the first returns them, the others return none. They may share memory with the policy, and
        change with its next step.

        Args:
            dtype: the element type of the parameters; adapters stay in float32, and without it so do all.
        """
        if self.settings.lora:
            return lora.scaled_adapters(self.policy, gather_to_cpu(trained(self.policy), keep=self.worker.rank == 0))
        return gather_to_cpu(parameters(self.policy), keep=self.worker.rank == 0, dtype=dtype)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in trained(self.policy).items()}

    @contextmanager
    def _compared(self) -> Iterator[ShardedModel]:
        """Yields the model that the policy's divergence is measured from: the teacher, or the fine-tuned model."""
        if self.teacher is not None:
            yield self.sharded["teacher"]
        else:
            with self._fine_tuned() as model:
                yield model

    @contextmanager
    def _fine_tuned(self) -> Iterator[ShardedModel]:
        """Yields the model that training started from; it may be used only within the context."""
        if self.settings.lora:
            with lora.disabled(self.policy):
                yield self.sharded["policy"]
        elif self.reference is not None:
            yield self.sharded["reference"]
        else:
            # No step computes it: it is loaded for the run page and for measurements alone.
            yield ShardedModel(self._load_reference(), self.worker.world_size, self.worker.device, self.worker.autocast)

    def _load_reference(self) -> Any:
        return causal_lm.load(self.start).eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool = False
    ) -> list[list[float]]:
        """Computes log-probabilities of the tokens from `starts` on, by the policy or by the model it started from."""
        batch = self.collator.sequences(sequences, starts)
        if fine_tuned:
            with self._fine_tuned() as model:
                values = self._logprobs(model, batch, temperature)
        else:
            values = self._logprobs(self.sharded["policy"], batch, temperature)
        return [row[mask].tolist() for row, mask in zip(values, batch.completion_mask, strict=True)]

    def _logprobs(self, model: ShardedModel, batch: RolloutBatch, temperature: float) -> Tensor:
        compute = partial(_completion_logprobs, model, temperature=temperature)
        return in_microbatches(self.worker, compute, batch)

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes a checkpoint of weights, optimizers and `extra` (JSON) into the scratch folder of `folder`."""
        own = {
            "version": self.version,
            "kl_coefficient": self.kl_coefficient,
            "first_length": self.first_length,
            "overoptimization": self.tracker.state_dict(),
        }
        within = self.last_within_limits
        state = self._training_states() | ({} if within is None else {WITHIN_LIMITS: within})
        self._checkpoints(folder).save(state, self.version, {**own, WITHIN_LIMITS: within is not None, **extra})

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Loads the newest checkpoint that `save` wrote; returns its `extra`, or None if there is none.

        Raises:
            UserError: the checkpoint is damaged, or was written by an earlier version of the project.
        """
        found = self._checkpoints(folder).newest()
        if found is None:
            if (folder / "checkpoint" / "state.json").exists():
                raise UserError(
                    f"RLHF was interrupted in {folder} by an earlier version, whose checkpoint is in another format: "
                    f"remove {folder / 'checkpoint'} to start RLHF from the beginning"
                )
            return None
        _, checkpoint = found
        extra = read_extra(checkpoint)
        within = self._copy() if extra[WITHIN_LIMITS] else None
        state = self._training_states() | ({} if within is None else {WITHIN_LIMITS: within})
        read(state, checkpoint)
        for name, optimizer in self.optimizers.items():
            load_training_state(self.sharded[name], [optimizer], state[name])
        self.last_within_limits = within
        self.version, self.kl_coefficient = extra["version"], extra["kl_coefficient"]
        self.first_length = extra["first_length"]
        self.tracker.load_state_dict(extra.get("overoptimization"))
        return extra

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(
            folder, self.worker.rank, self.worker.world_size, asynchronous=False, kept=self.settings.keep_checkpoints
        )

    def _training_states(self) -> dict[str, Any]:
        return {name: training_state(self.sharded[name], [own]) for name, own in self.optimizers.items()}

    def export(self, folder: Path, within_limits: bool) -> bool:
        """Writes the policy as `causal_lm.save` does.

        Args:
            within_limits: whether to write the last policy that was measured to be within the recipe's limits, else
                the fine-tuned model, and not the newest; the learner then holds it.

        Returns:
            Whether there was such a policy.
        """
        if within_limits:
            if self.last_within_limits is None:
                self._untrain()
            else:
                set_trained(self.policy, self.last_within_limits)
        if self.worker.world_size > 1:
            export_shared(self.policy, self.tokenizer, folder, self.worker.rank)
        else:
            tied = "lm_head.weight" if self.policy.config.tie_word_embeddings else None
            own = {name: value for name, value in self.policy.state_dict().items() if name != tied}
            causal_lm.save(self.policy, self.tokenizer, folder, gather_to_cpu(own, keep=True))
        return self.last_within_limits is not None

    def _untrain(self) -> None:
        """Resets the trained weights to their values before training; of adapters the upper matrices, which began at
        zero."""
        if self.settings.lora:
            ups = {name: value for name, value in trained(self.policy).items() if name.endswith(lora.UP)}
            set_trained(self.policy, {name: torch.zeros_like(value) for name, value in ups.items()})
        elif hasattr(self.policy, "stored_weights"):
            refill(self.policy)
        else:
            set_trained(self.policy, dict((self.reference or self._load_reference()).named_parameters()))

    def _trained_models(self) -> dict[str, Any]:
        return {"policy": self.policy} if self.critic is None else {"policy": self.policy, "critic": self.critic}


def _load_critic(folder: Path, settings: Rlhf) -> tuple[Any, float]:
    """Loads the reward model as a critic of the rewards that RLHF gives: (score - mean) / deviation, times its weight.

    Returns:
        The model, whose head is scaled, and the shift that has to be subtracted from its output.
    """
    model = load_reward_model(folder)
    scale = json.loads(reward_scale_file(folder).read_text(encoding="utf-8"))
    weight = sum(reward.weight for reward in settings.rewards if reward.kind == "model") or 1.0
    scale_head(model, weight / scale["deviation"])
    return model, weight * scale["mean"] / scale["deviation"]


def _this_worker(settings: Rlhf) -> DataParallelRank:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings.precision or engine_precision(device.type)
    return DataParallelRank(rank, world_size, settings.micro_batch_rows, precision, device)


def _completion_logprobs(model: ShardedModel, batch: RolloutBatch, temperature: float) -> Tensor:
    return model(completion_logprobs, batch.input_ids, batch.completion_mask, batch.groups, temperature)
