"""RLHF with rewards and an environment that fail, killed at random moments, beside a run that nothing disturbs.

A model of 2.5M parameters learns to add two numbers. Of its answers, a function that rewards them raises on 1 %, hangs
on 0.5 % and returns NaN on 0.5 %; an environment, which asks once more after a wrong answer, fails as often. The
command is killed at moments drawn from the seed, by turns alone and with all its processes, and given again. It has to
end, with a ledger that is whole and with held-out figures within the intervals of the undisturbed run's.

What is done stays in the folder: the same command goes on where it was.

python -m infra.bench.faulty_rewards [--run runs/faulty-rewards] [--seed 1] [--kills 10] [--steps 30] [key=value …]
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.run.metrics import read_metrics
from cluster.runtime.session import connect
from infra.bench.addition import accuracies, made
from infra.bench.loops.addition import sum_is_right
from infra.bench.loops.faulty import FaultySecondTry, SecondTry, faulty_sum
from infra.bench.scenarios.command import end_family
from pipelines.evaluate.stats import paired_shares, proportion

PROMPTS, SAMPLES = 16, 8
# The most seconds of one command.
SECONDS = 3000.0
DISTURBED, UNDISTURBED = "disturbed", "undisturbed"
SETTINGS = [
    f"rlhf.prompts_per_step={PROMPTS}",
    f"rlhf.sampling.samples_per_prompt={SAMPLES}",
    "rlhf.sampling.max_tokens=24",
    "rlhf.learning_rate=3.0e-4",
    "rlhf.dynamic_sampling=true",
    "rlhf.checkpoint_every=2",
]


@dataclass(frozen=True)
class Lives:
    """The time and the kills of a run's commands.

    Attributes:
        seconds: the seconds of all commands together.
        kills: how many were killed.
    """

    seconds: float
    kills: int


def settings_of(faulty: bool, seconds: float) -> list[str]:
    """Returns the recipe's keys for the rewards and the environment, which have so many seconds for an answer."""
    reward, talk = (faulty_sum, FaultySecondTry) if faulty else (sum_is_right, SecondTry)
    function = {"kind": "function", "function": f"{reward.__module__}:{reward.__name__}", "timeout_seconds": seconds}
    environment = {"function": f"{talk.__module__}:{talk.__name__}", "turns": 2, "timeout_seconds": seconds}
    return [
        f"rlhf.rewards={json.dumps([function, {'kind': 'environment'}])}",
        f"rlhf.environment={json.dumps(environment)}",
    ]


def trained(run: RunFolder, settings: Sequence[str], moments: Sequence[float], log: Path) -> Lives:
    """Runs the stage `rlhf` to its end, killing it after so many seconds each time; goes on where it was before.

    Raises:
        RuntimeError: the command failed.
        subprocess.TimeoutExpired: it did not end.
    """
    file = run.root / "lives.json"
    lives: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    command = [sys.executable, "-m", "pipelines", "rlhf", str(run.recipe_path), f"run={run.root}", *settings]
    while not run.manifest("policy"):
        kills = sum(life["killed"] for life in lives)
        patience = moments[kills] if kills < len(moments) else SECONDS
        begin = time.monotonic()
        with log.open("a") as out, subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                if kills >= len(moments):
                    end_family(process.pid)
                    raise
                code = None
                if kills % 2:
                    process.kill()
                else:
                    end_family(process.pid)
            except BaseException:
                end_family(process.pid)
                raise
        if code:
            raise RuntimeError(f"the command ended with {code}; see {log}")
        lives.append({"seconds": time.monotonic() - begin, "killed": code is None})
        write_json(file, lives)
        print(f"{run.root.name}: {lives[-1]}, steps {len(read_metrics(run.partial('policy')))}", flush=True)
    return Lives(sum(life["seconds"] for life in lives), sum(life["killed"] for life in lives))


def wrong_with(run: RunFolder, steps: int) -> list[str]:
    """Names steps, versions and prompts that are missing or counted twice in the metrics and the ledger of a finished
    run."""
    rows, metrics = read_metrics(run.path("policy")), run.require("policy").metrics
    booked = metrics["prompts"]
    checks = {
        "steps are missing or twice": [row["step"] for row in rows] == list(range(steps)),
        "versions are missing or twice": [row["version"] for row in rows] == list(range(1, steps + 1)),
        f"trained prompts: {booked}": booked["trained"] == steps * PROMPTS,
        f"filtered prompts: {booked}": booked["filtered"] == sum(row["filtered"] for row in rows),
        f"failed prompts: {booked}": booked["failed"] == sum(row["failed_prompts"] for row in rows),
        "failed verdicts": metrics["failed_verdicts"] == sum(row["failed_verdicts"] for row in rows),
    }
    return [what for what, holds in checks.items() if not holds]


def main() -> None:
    """Prints the table; ends with code 1 if anything is wrong."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", type=Path, default=Path("runs/faulty-rewards"), help="a folder for the runs")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--kills", type=int, default=10)
    words.add_argument("--steps", type=int, default=30)
    words.add_argument("--documents", type=int, default=3000, help="of sums, to pre-train on")
    words.add_argument("--seconds", type=float, default=2.0, help="that a reward or a reply may take")
    words.add_argument("overrides", nargs="*", metavar="key=value")
    given = words.parse_args()
    # So that the command that runs ends with the benchmark.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = given.run.absolute()
    base, recipe, apart = made(folder, given.seed, given.documents, given.overrides, ("corpus", "pretrain", "sft"))
    chance, lives = random.Random(given.seed), {}
    runs = {name: RunFolder(folder / name) for name in (UNDISTURBED, DISTURBED)}
    moments: list[float] = []
    for name, run in runs.items():
        if not run.root.exists():
            shutil.copytree(base.root, run.root, ignore=shutil.ignore_patterns("lock", ".partial"))
        settings = [*SETTINGS, f"rlhf.steps={given.steps}", *settings_of(name == DISTURBED, given.seconds)]
        lives[name] = trained(run, [*settings, *given.overrides], moments, folder / "log")
        moments = [chance.uniform(0, lives[name].seconds) for _ in range(given.kills)]
    models = {"fine-tuned": base.path("sft"), **{name: run.path("policy") for name, run in runs.items()}}
    with connect(recipe.cluster):
        found = accuracies(models, recipe, apart)
    print_table(runs, lives, found)
    wrong = {name: wrong_with(run, given.steps) for name, run in runs.items()}
    for way, hits in found.items():
        change = paired_shares(hits[UNDISTURBED], hits[DISTURBED])
        print(f"{way}: undisturbed to disturbed {change.change:+.3f} ({change.low:+.3f} to {change.high:+.3f})")
        if not change.low <= 0 <= change.high:
            wrong[DISTURBED].append(f"held-out sums, {way}")
    said = [f"{name}: {'; '.join(what)}" for name, what in wrong.items() if what]
    print("wrong:", *(said or ["nothing"]))
    sys.exit(any(wrong.values()))


def print_table(runs: dict[str, RunFolder], lives: dict[str, Lives], found: dict[str, dict[str, list[bool]]]) -> None:
    """Prints the figures of each run."""
    table = Table("run", "killed", "seconds", "trained, filtered, failed", "answers without a reward", *found)
    for name, run in runs.items():
        metrics = run.require("policy").metrics
        cells = [proportion(sum(hits[name]), len(hits[name])) for hits in found.values()]
        booked = ", ".join(str(metrics["prompts"][outcome]) for outcome in ("trained", "filtered", "failed"))
        failures = f"{metrics['failed_verdicts']:,} of {metrics['verdicts']:,}"
        shares = [f"{cell.value:.3f} ({cell.low:.3f}-{cell.high:.3f})" for cell in cells]
        table.add_row(name, str(lives[name].kills), f"{lives[name].seconds:.0f}", booked, failures, *shares)
    Console(width=180).print(table)
    before = {way: sum(hits["fine-tuned"]) / len(hits["fine-tuned"]) for way, hits in found.items()}
    print("fine-tuned model:", *(f"{way} {share:.3f}" for way, share in before.items()))


if __name__ == "__main__":
    main()
