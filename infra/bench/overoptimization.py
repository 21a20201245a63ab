"""When does a policy that is trained against a reward model get worse by a perfect judge, and which sign tells in time?

In a world of 80 words (`overoptimizing.world`) with a coded judge that no run sees, each run trains a reward model by
rankings of an annotator, who may err and may be biased towards length, an opening, refusals or a token, and then a
policy by the project's own learner. Settings differ in the reward model's size and data, the annotator, the KL penalty
and the algorithm. The tables show the true reward against the proxy by divergence (Gao et al. 2023), and how well each
sign of a real run tells that the true reward falls: fit on half of the settings, tested on the other half.

A finished run is a line of FOLDER/runs.jsonl: the same command goes on where it ended.

python -m infra.bench.overoptimization [--folder runs/overoptimization] [--runs 100] [--minutes 170] [--table]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from infra.bench.overoptimizing.run import run_setting, settings
from infra.bench.overoptimizing.tables import print_tables


def finished(file: Path) -> dict[int, dict[str, Any]]:
    """Reads finished runs by number; a line that a kill cut short is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["number"]] = row
    return found


def main() -> None:
    """Makes the runs that are missing and prints the tables."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, default=Path("runs/overoptimization"), help="of finished runs")
    words.add_argument("--runs", type=int, default=100, help="settings, one run each")
    words.add_argument("--minutes", type=float, default=170, help="no run is begun after so many")
    words.add_argument("--table", action="store_true", help="print the tables of what is finished, and begin no run")
    given = words.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    file, end = given.folder / "runs.jsonl", time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    done = finished(file)
    for number, setting in enumerate(settings(given.runs)):
        if given.table or time.monotonic() > end:
            break
        if number in done:
            continue
        row = {"number": number, **run_setting(setting, number, given.folder)}
        # A line that a kill cut short must not swallow the next one.
        with file.open("a+b") as out:
            out.seek(max(0, out.tell() - 1))
            torn = out.read(1) not in (b"", b"\n")
            out.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
        done[number] = row
        last = row["steps"][-1]
        print(f"{number}: {setting}, gold {row['steps'][0]['gold']:.2f} -> {last['gold']:.2f}", flush=True)
    if done:
        print_tables(list(done.values()), Console(width=150))


if __name__ == "__main__":
    main()
