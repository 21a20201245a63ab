"""Compares algorithms on the demo: the policy that each trains from the same fine-tuned model, with several seeds.

The whole recipe runs for every seed, in folders that stay, and for every further algorithm what comes after the reward
model; what is done already is not done again. The table gives the figures of the report, fine-tuned model -> policy.

python -m infra.bench.algorithms [--algorithms grpo rloo ppo] [--seeds 1 2 3] [--runs runs/algorithms]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from cluster.recipe.rlhf.section import Rlhf
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
ALGORITHMS = get_args(Rlhf.model_fields["algorithm"].annotation)
FIGURES = ("harmful_compliance", "misconception_rate", "over_refusal", "capital_accuracy", "stop_rate")
SECONDS = 3000


def made(folder: Path, seed: int, algorithm: str, log: Path) -> dict[str, Any]:
    """Runs the recipe with that seed and algorithm; returns its report.

    Raises:
        RuntimeError: the command failed.
    """
    words = ["run", RECIPE, f"run={folder}", f"seed={seed}", f"rlhf.algorithm={algorithm}"]
    with log.open("a") as out:
        command = [sys.executable, "-m", "pipelines", *map(str, words)]
        if subprocess.run(command, stdout=out, stderr=out, check=False, timeout=SECONDS).returncode:
            raise RuntimeError(f"{algorithm} with seed {seed} failed; see {log}")
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return report


def row(report: dict[str, Any], run: RunFolder) -> list[str]:
    """Formats the figures with the policy's 95 % interval, and the seconds of a step."""
    cells = []
    for name in FIGURES:
        before, after = report["sft"][name], report["policy"][name]
        cells.append(f"{before['value']:.2f} -> {after['value']:.2f} ({after['low']:.2f}-{after['high']:.2f})")
    times = [step["time"] for step in read_metrics(run.path("policy"))]
    return [*cells, f"{report['kl_from_sft']['value']:.2f}", f"{(times[-1] - times[0]) / (len(times) - 1):.2f}"]


def main() -> None:
    """Prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--algorithms", nargs="+", default=["grpo", "rloo", "ppo"], choices=ALGORITHMS)
    words.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    words.add_argument("--runs", type=Path, default=Path("runs/algorithms"), help="a folder for the runs")
    given = words.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    table = Table("algorithm", "seed", *(name.replace("_", " ") for name in FIGURES), "KL from SFT", "s a step")
    for seed in given.seeds:
        run = RunFolder(given.runs / str(seed))
        for algorithm in given.algorithms:
            figures = row(made(run.root, seed, algorithm, given.runs / "log"), run)
            print(algorithm, seed, *figures, sep=" | ", flush=True)
            table.add_row(algorithm, str(seed), *figures)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
