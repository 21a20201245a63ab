"""Samples a second of RLHF with GRPO beside TRL's `GRPOTrainer`, which draws with transformers' `generate`.

The same model, prompts, samples a prompt, most tokens, batch, reward, KL divergence from a reference and AdamW, in
float32. The stage runs as a command on a copy of a finished run: with its Ray actors, ledger, metrics and weight sync.
The medians of the steps but the first are compared.

make demo && python -m infra.bench.grpo [--run runs/demo] [--prompts 16] [--samples 8] [--tokens 32] [--steps 8]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.metrics import read_metrics
from cluster.recipe import load_recipe
from cluster.run import RunFolder
from infra.bench.faults import SECONDS, Command, copied, options, parsed
from infra.bench.loops.reward import BETA, RATE, brevity
from infra.bench.peers.run_trl import steps_of
from pipelines.chat_data import prompts
from pipelines.preferences import in_turn

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
        "samples_per_prompt": samples,
        "max_tokens": tokens,
        "kl_coefficient": BETA,
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


def shaped(about: str | None, log: str, tokens: int, steps: int) -> argparse.Namespace:
    """What was given: a finished run, and how large a step is."""
    words = options(about, log)
    for name, value in (("prompts", 16), ("samples", 8), ("tokens", tokens), ("steps", steps)):
        words.add_argument(f"--{name}", type=int, default=value)
    return parsed(words)


def main() -> None:
    """Prints the rates and their ratio."""
    given = shaped(__doc__, "grpo.log", tokens=32, steps=8)
    shape = (given.steps, given.prompts, given.samples, given.tokens)
    run, recipe = RunFolder(given.run), load_recipe(given.run / "recipe.yaml")
    texts = in_turn(prompts(recipe.collect.sources, recipe.seed), recipe.seed)[: recipe.collect.prompts]
    with tempfile.TemporaryDirectory(prefix="triptych-grpo-") as folder:
        lines = Path(folder) / "prompts.jsonl"
        lines.write_text("".join(f"{json.dumps(text.messages)}\n" for text in texts), encoding="utf-8")
        ours = [row["seconds"] for row in own(given.run, given.log, *shape)]
        theirs = steps_of("trl_grpo.py", run.path("sft"), lines, *shape)
    print(f"{given.prompts} prompts x {given.samples} samples a step, at most {given.tokens} tokens, GRPO")
    rates = [given.prompts * given.samples / statistics.median(seconds) for seconds in (ours, theirs)]
    print(f"Triptych {rates[0]:,.1f} samples/s; TRL {rates[1]:,.1f} samples/s; ratio {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
