"""Tokens per second of the training loop beside transformers' `Trainer` and eager code in nanoGPT's manner.

The same model, rows, AdamW, clipping and bfloat16 autocast for all three; each step's time is taken after warm-up, and
the medians are compared. The loop masks documents and makes logits for trained tokens alone, the peers do neither.

python infra/bench/training.py [--size 2.5M] [--rows 16] [--context 256] [--vocabulary 4096] [--steps 10]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from actors.model.batches import Part, accumulate
from actors.model.language import build
from actors.model.objectives.language import LanguageObjective
from actors.model.optimiser import BETAS, adamw
from actors.model.sharding import WithLoss
from actors.model.speed import flops_per_token, peak_flops
from cluster.recipe import Model

WARM_UP = 2
RATE, DECAY, NORM = 1e-3, 0.1, 1.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def own_seconds(model: LlamaForCausalLM, ids: np.ndarray, steps: int) -> list[float]:
    """Seconds of each step of the project's loop, one global batch in one micro-batch."""
    objective = LanguageObjective()
    rows = pa.table({"input_ids": pa.array(list(ids)), "document_ids": pa.array(list(np.zeros_like(ids)))})
    both, stepper = WithLoss(model, objective), adamw(list(model.parameters()), RATE, DECAY)
    part = Part(0, 1, len(ids), "bfloat16", DEVICE)

    def step() -> None:
        accumulate(both, objective, rows, objective.count(objective.collate(rows)), part)
        torch.nn.utils.clip_grad_norm_(both.parameters(), NORM)
        stepper.step()
        stepper.zero_grad(set_to_none=True)

    return [_seconds(step) for _ in range(steps)]


def eager_seconds(model: LlamaForCausalLM, ids: np.ndarray, steps: int) -> list[float]:
    """The same with transformers' own forward and a loop of five lines."""
    batch = torch.from_numpy(ids).to(DEVICE)
    stepper = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        float(loss.detach())

    return [_seconds(step) for _ in range(steps)]


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_: object, **__: object) -> None:
        """A time stamp."""
        self.ends.append(time.perf_counter())


def trainer_seconds(model: LlamaForCausalLM, ids: np.ndarray, steps: int) -> list[float]:
    """The same with transformers' Trainer."""
    clock = _Clock()
    rows = [{"input_ids": row, "labels": row} for row in ids] * steps
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(ids),
            learning_rate=RATE,
            weight_decay=DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=NORM,
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=DEVICE.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, default_data_collator, rows, callbacks=[clock])
        trainer.train()
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


def main() -> None:
    """Prints the three rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2.5M")
    for name, value in (("rows", 16), ("context", 256), ("vocabulary", 4096), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    shape = Model(size=given.size, context=given.context, vocabulary=given.vocabulary)
    ids = np.random.default_rng(0).integers(5, given.vocabulary, (given.rows, given.context))
    peak = peak_flops(DEVICE, "bfloat16")
    ways: dict[str, Callable[..., list[float]]] = {
        "the loop": own_seconds,
        "eager": eager_seconds,
        "transformers Trainer": trainer_seconds,
    }
    rates = {}
    for name, measure in ways.items():
        model = build(shape, 0, end_of_turn=4, padding=0).to(DEVICE)
        seconds = statistics.median(measure(model, ids, WARM_UP + given.steps)[WARM_UP:])
        rates[name] = ids.size / seconds
        share = flops_per_token(model, given.context) * rates[name] / peak
        print(f"{name}: {rates[name]:,.0f} tokens/s, {share:.2f} of the peak of {peak / 1e9:,.0f} GFLOP/s")
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{given.size} parameters, {given.rows} rows of {given.context} tokens, bfloat16, {where}")
    for name in ("eager", "transformers Trainer"):
        print(f"ratio to {name}: {rates['the loop'] / rates[name]:.2f}")


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
