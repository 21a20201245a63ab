"""Tokens per second of the training loop beside transformers' `Trainer` and eager code in nanoGPT's manner.

The same model, rows, AdamW, clipping and precision (bfloat16 where the machine has instructions for it) for all. Each
way has a process of its own, the loop's with the environment that a stage sets. They take turns, so that a busy moment
of the machine hits all of them; the medians of their steps are compared, and set beside the rate of matrix products in
each turn: the best, and on a CPU also the median of a second, the sustained rate. The loop keeps documents apart and
makes logits for trained tokens alone, the peers do neither. With --ray, the loop also runs as a stage runs it.

python -m infra.bench.train [--size 2.5M] [--rows 16] [--micro-rows 16] [--context 256] [--vocabulary 4096]
    [--steps 4] [--documents 1] [--ways compiled eager] [--ray]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from actors.model.causal_lm import build
from actors.model.optim import BETAS
from actors.model.perf import SIDES, compile_layers, flops_per_token, native_precision, peak_flops, peak_memory_gb
from actors.objectives.lm import LanguageObjective
from cluster.recipe.model import Model
from cluster.runtime.session import ENVIRONMENT, TRAINING_ENVIRONMENT
from infra.bench.loops.own import BARE, DECAY, NORM, RATE, StepClock, own_step
from infra.bench.loops.rows import table

TURNS, WARM_UP = 3, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = native_precision(DEVICE)
Measure = Callable[[int], list[float]]


def own(
    model: LlamaForCausalLM, rows: pa.Table, micro_rows: int, objective: LanguageObjective | None = None
) -> Measure:
    """Makes a function that measures the seconds of so many steps of the project's loop, with at most so many rows in a
    forward pass."""
    step = own_step(model, objective or LanguageObjective(), micro_rows, DEVICE)
    return lambda steps: [_seconds(partial(step, rows)) for _ in range(steps)]


def compiled(model: LlamaForCausalLM, rows: pa.Table, micro_rows: int) -> Measure:
    """Makes the same function as `own`, with `compile_layers`."""
    objective = LanguageObjective()
    compile_layers(model)
    objective.compiled = True
    return own(model, rows, micro_rows, objective)


def eager(model: LlamaForCausalLM, rows: pa.Table, micro_rows: int) -> Measure:
    """Makes the same function for transformers' own forward and a loop of five lines."""
    batches = LanguageObjective().collate(rows).input_ids.to(DEVICE).split(micro_rows)
    stepper = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        for batch in batches:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=PRECISION == "bfloat16"):
                loss = model(input_ids=batch, labels=batch).loss / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        float(loss.detach())

    return lambda steps: [_seconds(step) for _ in range(steps)]


def transformers_trainer(model: LlamaForCausalLM, table: pa.Table, micro_rows: int) -> Measure:
    """Makes the same function for transformers' Trainer, its first step left out."""

    def measure(steps: int) -> list[float]:
        clock = StepClock()
        rows = [{"input_ids": row, "labels": row} for row in table["input_ids"].to_numpy()] * (steps + 1)
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=steps + 1,
                per_device_train_batch_size=micro_rows,
                gradient_accumulation_steps=table.num_rows // micro_rows,
                learning_rate=RATE,
                weight_decay=DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                max_grad_norm=NORM,
                bf16=PRECISION == "bfloat16",
                use_cpu=DEVICE.type == "cpu",
                **BARE,
            )
            Trainer(model, settings, default_data_collator, rows, callbacks=[clock]).train()
        return [end - start for start, end in pairwise(clock.ends)]

    return measure


WAYS = {"the loop": own, "compiled": compiled, "eager": eager, "transformers Trainer": transformers_trainer}
OWN = ("the loop", "compiled")


def main() -> None:
    """Prints the rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2.5M")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--micro-rows", type=int, help="rows of a forward pass; all, if not given")
    for name, value in (("rows", 16), ("context", 256), ("vocabulary", 4096), ("steps", 4), ("documents", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="all are in memory at once")
    given = parser.parse_args()
    shape = Model(size=given.size, context=given.context, vocabulary=given.vocabulary)
    ids = np.random.default_rng(0).integers(5, given.vocabulary, (given.rows, given.context))
    rows = table(ids, given.documents)
    micro_rows = given.micro_rows or given.rows
    if given.rows % micro_rows:
        parser.error(f"--rows {given.rows} is no multiple of --micro-rows {micro_rows}")
    model = build(shape, 0, end_of_turn=4, padding=0)
    flops = flops_per_token(model, given.context)
    found: dict[str, list[float]] = {name: [] for name in given.ways}
    memory: dict[str, float] = {}
    peaks, sustained = [], []
    with ExitStack() as stack:
        asked = {name: stack.enter_context(_process(name, shape, rows, micro_rows)) for name in given.ways}
        for turn in range(TURNS + 1):
            # In each turn: a virtual machine's rate changes by 10 % within minutes.
            peaks.append(peak_flops(DEVICE, PRECISION))
            sustained.append(_sustained_flops())
            for name, connection in asked.items():
                connection.send(given.steps if turn else WARM_UP)
                # The first turn warms up.
                seconds, memory[name] = connection.recv()
                found[name] += seconds[0 if turn else WARM_UP :]
        if given.ray:
            from infra.bench.loops.in_a_stage import in_a_stage

            # The last step waits for its checkpoint.
            found["in a stage"] = in_a_stage(shape, rows, micro_rows, TURNS * given.steps + WARM_UP)[WARM_UP:-1]
            # The loop runs before and after the stage, so that a change of the machine's speed affects both alike.
            for name in {"the loop"} & asked.keys():
                asked[name].send(TURNS * given.steps)
                found[name] += asked[name].recv()[0]
    peak, lasting_rate = statistics.median(peaks), statistics.median(sustained)
    rates = {name: ids.size / statistics.median(seconds) for name, seconds in found.items()}
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    shapes = f"{given.rows} rows ({micro_rows} at once) of {given.documents} documents, {given.context} tokens together"
    print(f"{given.size} parameters, {shapes}, {PRECISION}, {where}")
    for name, rate in rates.items():
        share = flops * rate / peak
        held = f"; {memory[name]:.1f} GB at most" if name in memory else ""
        print(
            f"{name}: {rate:,.0f} tokens/s, {share:.2f} of the peak of {peak / 1e9:,.0f} GFLOP/s, "
            f"{flops * rate / lasting_rate:.2f} of the sustained {lasting_rate / 1e9:,.0f}{held}"
        )
    for name in OWN:
        for peer in ("eager", "transformers Trainer"):
            if name in rates and peer in rates:
                print(f"ratio of {name} to {peer}: {rates[name] / rates[peer]:.2f}")
    if given.ray and "the loop" in rates:
        print(f"ratio of in a stage to the loop: {rates['in a stage'] / rates['the loop']:.2f}")


@contextmanager
def _process(name: str, shape: Model, rows: pa.Table, micro_rows: int) -> Iterator[Connection]:
    """Starts a process for one way. Sent a number of steps, it answers with the seconds of each, and the most memory so
    far in GB."""
    here, there = multiprocessing.Pipe()
    words = (name, shape, rows, micro_rows, there)
    start = multiprocessing.get_context("spawn").Process(target=_measure, args=words, daemon=True)
    with patch.dict(os.environ, {**ENVIRONMENT, **TRAINING_ENVIRONMENT} if name in OWN else {}):
        start.start()
    there.close()
    yield here
    here.close()
    start.join()


def _measure(name: str, shape: Model, rows: pa.Table, micro_rows: int, connection: Connection) -> None:
    measure = WAYS[name](build(shape, 0, end_of_turn=4, padding=0).to(DEVICE), rows, micro_rows)
    with suppress(EOFError):
        while True:
            connection.send((measure(connection.recv()), peak_memory_gb(DEVICE)))


def _sustained_flops() -> float:
    """Measures the operations a second of a median matrix product, over one second."""
    if DEVICE.type == "cuda":
        return peak_flops(DEVICE, PRECISION)
    side = SIDES[DEVICE.type]
    left, right = (
        torch.randn(side, side, dtype=torch.bfloat16 if PRECISION == "bfloat16" else torch.float32) for _ in range(2)
    )
    seconds, end = list[float](), time.perf_counter() + 1.0
    while time.perf_counter() < end:
        seconds.append(_seconds(lambda: torch.mm(left, right)))
    return 2.0 * side**3 / statistics.median(seconds)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
