"""Tokens per second of the training loop beside transformers' `Trainer` and eager code in nanoGPT's manner.

The same model, rows, AdamW, clipping and bfloat16 autocast for all. The ways take turns, so that a busy moment of the
machine hits all of them; the medians of their steps are compared. The loop masks documents and makes logits for trained
tokens alone, the peers do neither. With --ray, the loop also runs under Ray Train, as a stage does.

python -m infra.bench.training [--size 2.5M] [--rows 16] [--context 256] [--vocabulary 4096] [--steps 4] [--ray]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from actors.model.batches import Part, accumulate
from actors.model.language import build
from actors.model.objectives.language import LanguageObjective
from actors.model.optimiser import BETAS, adamw
from actors.model.sharding import WithLoss
from actors.model.speed import compile_layers, flops_per_token, peak_flops
from actors.stream import Shard
from actors.training_job import TrainingJob
from cluster.plan import Plan, Share
from cluster.recipe import Cluster, Model, Training
from cluster.session import connect
from pipelines.corpus.tokenizer import save_tokenizer, train_tokenizer
from pipelines.training import fit

TURNS, WARM_UP = 3, 2
RATE, DECAY, NORM = 1e-3, 0.1, 1.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Measure = Callable[[int], list[float]]


def own(model: LlamaForCausalLM, ids: np.ndarray) -> Measure:
    """Seconds of so many steps of the project's loop, one global batch in one micro-batch."""
    objective = LanguageObjective()
    rows = table(ids)
    both, stepper = WithLoss(model, objective), adamw(list(model.parameters()), RATE, DECAY)
    part = Part(0, 1, len(ids), "bfloat16", DEVICE)

    def step() -> None:
        accumulate(both, objective, rows, objective.count(objective.collate(rows)), part)
        torch.nn.utils.clip_grad_norm_(both.parameters(), NORM)
        stepper.step()
        stepper.zero_grad(set_to_none=True)

    return lambda steps: [_seconds(step) for _ in range(steps)]


def compiled(model: LlamaForCausalLM, ids: np.ndarray) -> Measure:
    """The same with `compile_layers`."""
    compile_layers(model)
    return own(model, ids)


def eager(model: LlamaForCausalLM, ids: np.ndarray) -> Measure:
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

    return lambda steps: [_seconds(step) for _ in range(steps)]


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """A time stamp."""
        self.ends.append(time.perf_counter())


def transformers_trainer(model: LlamaForCausalLM, ids: np.ndarray) -> Measure:
    """The same with transformers' Trainer, its first step left out."""

    def measure(steps: int) -> list[float]:
        clock = _Clock()
        rows = [{"input_ids": row, "labels": row} for row in ids] * (steps + 1)
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=steps + 1,
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
            Trainer(model, settings, default_data_collator, rows, callbacks=[clock]).train()
        return [end - start for start, end in pairwise(clock.ends)]

    return measure


def under_ray_train(shape: Model, ids: np.ndarray, steps: int) -> list[float]:
    """The same as a stage runs it: Ray Train's worker, the stream of rows, the metrics. From metric to metric."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, connect(Cluster(), object_store_gb=0.5):
        root = Path(folder)
        save_tokenizer(train_tokenizer(["to export with the model"], 300), root / "tokenizer", shape.context)
        size = len(ids)
        job = TrainingJob(
            settings=Training(batch_rows=size, micro_batch_rows=size, learning_rate=RATE, checkpoint_every=steps),
            make=partial(_made, shape, root / "tokenizer"),
            shards=[_shard(root / "train.parquet", np.tile(ids, (steps, 1)))],
            held_out=[_shard(root / "held_out.parquet", ids[:1])],
            out=root,
            seed=0,
            threads=threads,
            deadline=300,
        )
        share = Share(max(0.5, threads - 1), float(DEVICE.type == "cuda"), threads)
        plan = Plan(threads, share.gpus, 8, share, 1, share, share, share, share)
        times = [row["time"] for row in fit(job, plan, "under Ray Train")]
    # The last step waits for its checkpoint.
    return [end - start for start, end in pairwise(times[WARM_UP:-1])]


def table(ids: np.ndarray) -> pa.Table:
    """Rows of one document each."""
    return pa.table({"input_ids": pa.array(list(ids)), "document_ids": pa.array(list(np.zeros_like(ids)))})


def main() -> None:
    """Prints the rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2.5M")
    parser.add_argument("--ray", action="store_true")
    for name, value in (("rows", 16), ("context", 256), ("vocabulary", 4096), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    shape = Model(size=given.size, context=given.context, vocabulary=given.vocabulary)
    ids = np.random.default_rng(0).integers(5, given.vocabulary, (given.rows, given.context))
    peak = peak_flops(DEVICE, "bfloat16")
    ways = {"the loop": own, "compiled": compiled, "eager": eager, "transformers Trainer": transformers_trainer}
    model = build(shape, 0, end_of_turn=4, padding=0)
    flops = flops_per_token(model, given.context)
    measures = {name: way(build(shape, 0, end_of_turn=4, padding=0).to(DEVICE), ids) for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(TURNS + 1):
        for name, measure in measures.items():
            # The first turn warms up.
            found[name] += measure(given.steps if turn else WARM_UP)[0 if turn else WARM_UP :]
    if given.ray:
        found["under Ray Train"] = under_ray_train(shape, ids, TURNS * given.steps + WARM_UP)
    rates = {name: ids.size / statistics.median(seconds) for name, seconds in found.items()}
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{given.size} parameters, {given.rows} rows of {given.context} tokens, bfloat16, {where}")
    for name, rate in rates.items():
        share = flops * rate / peak
        print(f"{name}: {rate:,.0f} tokens/s, {share:.2f} of the peak of {peak / 1e9:,.0f} GFLOP/s")
    for name in ("the loop", "compiled"):
        for peer in ("eager", "transformers Trainer"):
            print(f"ratio of {name} to {peer}: {rates[name] / rates[peer]:.2f}")
    if given.ray:
        print(f"ratio of under Ray Train to the loop: {rates['under Ray Train'] / rates['the loop']:.2f}")


def _shard(path: Path, rows: np.ndarray) -> Shard:
    parquet.write_table(table(rows), path)
    return Shard(str(path), len(rows))


def _made(shape: Model, tokenizer: Path) -> tuple[Any, Any, Any]:
    from actors.model.tokenizer import load_tokenizer

    return build(shape, 0, end_of_turn=4, padding=0), LanguageObjective(), load_tokenizer(tokenizer)


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
