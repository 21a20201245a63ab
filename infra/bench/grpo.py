"""Samples a second of RLHF with GRPO beside TRL's `GRPOTrainer`, which draws with transformers' `generate`.

The same model, prompts, samples a prompt, most tokens, batch, reward, KL divergence from a reference and AdamW, in
float32. The stage runs as a command on a copy of a finished run: with its Ray actors, ledger, metrics and weight sync.
The medians of the steps but the first are compared.

make demo && python -m infra.bench.grpo [--run runs/demo] [--prompts 16] [--samples 8] [--tokens 32] [--steps 8]
    [--rows 8]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics
from infra.bench.faults import SECONDS, Command, copied, options, parsed
from infra.bench.loops.reward import BETA, RATE, brevity
from infra.bench.peers.run_trl import steps_of
from pipelines.rlhf_setup import prompts_to_train_on

REWARD = f"{{kind: function, function: '{brevity.__module__}:{brevity.__name__}'}}"


def own(
    finished: Path,
    log: Path,
    steps: int,
    together: int,
    samples: int,
    tokens: int,
    more: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The metrics of every step of the stage but the first, with its `seconds`; `more` settings of rlhf are set.

    Raises:
        RuntimeError: the command failed.
    """
    settings = {
        "algorithm": "grpo",
        "rewards": f"[{REWARD}]",
        "steps": steps + 1,
        "prompts_per_step": together,
        "sampling.samples_per_prompt": samples,
        "sampling.max_tokens": tokens,
        "kl.coefficient": BETA,
        "learning_rate": RATE,
        "pretrain_mix": 0,
        "checkpoint_every": steps + 1,
        **(more or {}),
    }
    with copied(finished) as run:
        command = Command(run, log, [f"rlhf.{name}={value}" for name, value in settings.items()])
        try:
            if command.process.wait(SECONDS):
                raise RuntimeError(f"the stage failed; see {log}")
        finally:
            command.end()
        rows = read_metrics(run.path("policy"))
    return [row | {"seconds": row["time"] - before["time"]} for before, row in pairwise(rows)]


def shape_options(about: str | None, log: str, prompts: int, tokens: int, steps: int) -> argparse.ArgumentParser:
    """The words that say on which finished run, and how large a step is."""
    words = options(about, log)
    for name, value in (("prompts", prompts), ("samples", 8), ("tokens", tokens), ("steps", steps)):
        words.add_argument(f"--{name}", type=int, default=value)
    return words


def main() -> None:
    """Prints the rates and their ratio."""
    words = shape_options(__doc__, "grpo.log", prompts=16, tokens=32, steps=8)
    words.add_argument("--rows", type=int, help="samples that TRL's model takes at once: all, unless memory is short")
    given = parsed(words)
    batch = given.prompts * given.samples
    rows = given.rows or batch
    shape = (given.steps, given.prompts, given.samples, given.tokens)
    run = RunFolder(given.run)
    recipe = load_recipe(given.run / "recipe.yaml", [f"rlhf.sampling.max_tokens={given.tokens}"])
    asked = prompts_to_train_on(recipe, Chat.of(run.path("sft"))).questions.values()
    with tempfile.TemporaryDirectory(prefix="triptych-grpo-") as folder:
        lines = Path(folder) / "prompts.jsonl"
        lines.write_text("".join(f"{json.dumps(question.messages)}\n" for question in asked), encoding="utf-8")
        ours = [row["seconds"] for row in own(given.run, given.log, *shape)]
        theirs = steps_of("trl_grpo.py", run.path("sft"), lines, *shape, rows)
    print(f"{given.prompts} prompts x {given.samples} samples a step, at most {given.tokens} tokens, GRPO")
    rates = [batch / statistics.median(seconds) for seconds in (ours, theirs)]
    print(f"Triptych {rates[0]:,.1f} samples/s; TRL {rates[1]:,.1f} samples/s; ratio {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
