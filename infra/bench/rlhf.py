"""RLHF's speed: beside TRL, with rollouts and learning in turn or beside each other, and of the rollout fleet alone.

    trl         samples a second of GRPO beside TRL's `GRPOTrainer`, which draws with transformers' `generate`: the same
                model, prompts, samples a prompt, most tokens, batch, reward, KL divergence from a reference and AdamW,
                in float32
    overlap     samples a second by current weights only (`max_staleness` 0), with one version's staleness, and with
                new weights swapped in under answers too. One rollout actor draws; on two cores it and the learner have
                one each, so that they can overlap. A step is so small that both take about as long: with more prompts
                the learner is at work nearly all the time, and the whole machine is no faster in two halves
    generate    tokens a second of the rollout fleet beside transformers' own `generate`

In the first two the stage runs as a command on a copy of a finished run: with its Ray actors, ledger, metrics and
weight sync. The medians of the steps but the first are compared.

make demo && python -m infra.bench.rlhf [trl | overlap | generate] [--run runs/demo] [--prompts N] [--samples N]
    [--tokens N] [--steps N] [--rows N]        all three, each with its own numbers, unless one is named
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.types import Prompt, Sampling
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics
from cluster.runtime.plan import make_plan
from cluster.runtime.session import connect
from infra.bench.loops.reward import BETA, RATE, brevity
from infra.bench.peers.run_trl import run_trl
from infra.bench.scenarios.command import SECONDS, RlhfCommand, copied
from pipelines.demo.questions import training_questions
from pipelines.rlhf.setup import training_prompts

REWARD = (
    f"{{kind: function, function: '{brevity.__module__}:{brevity.__name__}', accept_hacks: [empty, echo, repeated]}}"
)
MODES: dict[str, dict[str, Any]] = {
    "in turn": {"fleet.max_staleness": 0},
    "beside each other": {"fleet.max_staleness": 1},
    "swapped in flight": {"fleet.max_staleness": 1, "fleet.swap_in_flight": "true"},
}


@dataclass(frozen=True)
class Size:
    """The size of a measurement.

    Attributes:
        prompts: the number of prompts of a step.
        samples: the number of samples of a prompt.
        tokens: the most tokens of an answer.
        steps: the number of steps that are measured; of rounds for `generate`.
    """

    prompts: int
    samples: int
    tokens: int
    steps: int


def stage_steps(finished: Path, log: Path, size: Size, more: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Runs the stage and returns the metrics of every step but the first, with its `seconds`.

    Args:
        finished: the run whose copy is trained on.
        log: takes what the command prints.
        size: the numbers of steps, prompts, samples and tokens.
        more: further settings of `rlhf`.

    Raises:
        RuntimeError: the command failed.
    """
    settings = {
        "algorithm": "grpo",
        "rewards": f"[{REWARD}]",
        "steps": size.steps + 1,
        "prompts_per_step": size.prompts,
        "sampling.samples_per_prompt": size.samples,
        "sampling.max_tokens": size.tokens,
        "kl.coefficient": BETA,
        "learning_rate": RATE,
        "pretrain_mix": 0,
        "checkpoint_every": size.steps + 1,
        **(more or {}),
    }
    with copied(finished) as run:
        command = RlhfCommand(run, log, [f"rlhf.{name}={value}" for name, value in settings.items()])
        try:
            if command.process.wait(SECONDS):
                raise RuntimeError(f"the stage failed; see {log}")
        finally:
            command.end()
        rows = read_metrics(run.path("policy"))
    return [row | {"seconds": row["time"] - before["time"]} for before, row in pairwise(rows)]


def trl(given: argparse.Namespace, size: Size) -> None:
    """Prints the rates of the stage and of TRL, and their ratio."""
    batch = size.prompts * size.samples
    run = RunFolder(given.run)
    recipe = load_recipe(given.run / "recipe.yaml", [f"rlhf.sampling.max_tokens={size.tokens}"])
    asked = training_prompts(recipe, Chat.of(run.path("sft"))).inputs.values()
    with tempfile.TemporaryDirectory(prefix="triptych-rlhf-") as folder:
        lines = Path(folder) / "prompts.jsonl"
        lines.write_text("".join(f"{json.dumps(question.messages)}\n" for question in asked), encoding="utf-8")
        ours = [row["seconds"] for row in stage_steps(given.run, given.log, size)]
        sizes = (size.steps, size.prompts, size.samples, size.tokens, given.rows or batch)
        theirs = run_trl("trl_grpo.py", run.path("sft"), lines, *sizes)
    print(f"{size.prompts} prompts x {size.samples} samples a step, at most {size.tokens} tokens, GRPO")
    rates = [batch / statistics.median(seconds) for seconds in (ours, theirs)]
    print(f"Triptych {rates[0]:,.1f} samples/s; TRL {rates[1]:,.1f} samples/s; ratio {rates[0] / rates[1]:.2f}")


def overlap(given: argparse.Namespace, size: Size) -> None:
    """Prints a table of the modes."""
    table = Table("mode", "samples/s", "of in turn", "learner idle", "rollouts idle")
    rates: list[float] = []
    for mode, settings in MODES.items():
        rows = stage_steps(given.run, given.log, size, settings | {"fleet.rollout_actors": 1})
        rates.append(size.prompts * size.samples / statistics.median(row["seconds"] for row in rows))
        idle = [statistics.mean(row[name] for row in rows) for name in ("learner_idle", "rollout_idle")]
        table.add_row(mode, f"{rates[-1]:.1f}", f"{rates[-1] / rates[0]:.2f}", *(f"{share:.2f}" for share in idle))
    Console().print(table)


def generate(given: argparse.Namespace, size: Size) -> None:
    """Prints the rates of the fleet and of transformers, and their ratio."""
    chat = Chat.of(given.run / "sft")
    every = training_questions(seed=1)
    questions = every[:: max(1, len(every) // size.prompts)][: size.prompts]
    prompts = [Prompt(q.id, chat.prompt([{"role": "user", "content": q.text}])) for q in questions]
    peer = transformers_rate(given.run, prompts, chat, size)
    own = fleet_rate(given.run, prompts, size)
    sizes = f"{size.prompts} prompts x {size.samples} samples, at most {size.tokens} tokens"
    print(f"{sizes}, median of {size.steps} rounds")
    print(f"rollout fleet {own:,.0f} tokens/s; transformers generate {peer:,.0f} tokens/s; ratio {own / peer:.2f}")


def fleet_rate(run: Path, prompts: list[Prompt], size: Size) -> float:
    """Measures the median tokens per second over rounds, after a warm-up round, with the recipe's rollout actors."""
    recipe = load_recipe(run / "recipe.yaml")
    actors, share = recipe.rlhf.fleet.rollout_actors, make_plan(recipe).rollout
    with (
        connect(recipe.cluster),
        Fleet(run / "sft", actors, share, recipe.model.context, recipe.seed, 300.0) as fleet,
    ):
        rates = []
        for seed in range(size.steps + 1):
            start = time.perf_counter()
            samples = fleet.generate(prompts, Sampling(size.samples, 1.0, size.tokens, seed))
            tokens = sum(len(sample.token_ids) for group in samples.values() for sample in group)
            rates.append(tokens / (time.perf_counter() - start))
    return sorted(rates[1:])[size.steps // 2]


def transformers_rate(run: Path, prompts: list[Prompt], chat: Chat, size: Size) -> float:
    """Measures the same with one batch of `generate` in this process on all cores."""
    model = AutoModelForCausalLM.from_pretrained(run / "sft", dtype=torch.float32).eval()
    length = max(len(prompt.token_ids) for prompt in prompts)
    rows = [prompt.token_ids for prompt in prompts for _ in range(size.samples)]
    ids = torch.tensor([[chat.padding_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    rates = []
    for seed in range(size.steps + 1):
        torch.manual_seed(seed)
        start = time.perf_counter()
        drawn = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=size.tokens
        )[:, length:]
        ended = (drawn == chat.end_of_turn_id).int()
        tokens = int(((ended.cumsum(1) - ended) == 0).sum())
        rates.append(tokens / (time.perf_counter() - start))
    return sorted(rates[1:])[size.steps // 2]


MEASUREMENTS: dict[str, tuple[Callable[[argparse.Namespace, Size], None], Size]] = {
    "trl": (trl, Size(prompts=16, samples=8, tokens=32, steps=8)),
    "overlap": (overlap, Size(prompts=4, samples=8, tokens=96, steps=30)),
    "generate": (generate, Size(prompts=16, samples=8, tokens=24, steps=5)),
}


def main() -> None:
    """Prints the measurements that the command line names."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", nargs="?", choices=MEASUREMENTS, help="all, unless one is named")
    words.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    words.add_argument("--log", type=Path, default=Path("rlhf.log"), help="what the commands print goes here")
    for name in ("prompts", "samples", "tokens", "steps"):
        words.add_argument(f"--{name}", type=int)
    words.add_argument("--rows", type=int, help="samples that TRL's model takes at once: all, unless memory is short")
    given = words.parse_args()
    # So that `make bench` does not fail where no run is finished.
    if not RunFolder(given.run).manifest("report"):
        print(f"{given.run} is not finished: run `make demo` first")
        sys.exit()
    for name in [given.what] if given.what else MEASUREMENTS:
        measure, usual = MEASUREMENTS[name]
        sizes = {field: getattr(given, field) or value for field, value in vars(usual).items()}
        measure(given, Size(**sizes))


if __name__ == "__main__":
    main()
