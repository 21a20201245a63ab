"""The cost of faults: processes, nodes and whole runs are killed at work, and the work has to resume.

Each scenario prints the seconds until the work went on, what the user had to do for it, and what differs from an
undisturbed run. Those on a finished run take a copy of it. All together take about an hour on two cores.

make demo && python -m infra.bench.faults [--run runs/demo] [--only NAME] [--list]
    --only learner      scenarios with "learner" in their name; "rlhf:", "stage:", "corpus:" and "node:" name groups
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.run.folder import RunFolder
from infra.bench.scenarios import corpus_kills, joining_node, leaving_nodes, rlhf_processes, stage_kills
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings

GROUPS = (rlhf_processes, stage_kills, corpus_kills, joining_node, leaving_nodes)
SCENARIOS: list[Scenario] = [scenario for group in GROUPS for scenario in group.SCENARIOS]


def survive(scenario: Scenario, settings: Settings) -> ScenarioOutcome:
    """Runs a scenario; work that does not go on is an outcome too."""
    try:
        return scenario.measure(settings)
    except (TimeoutError, RuntimeError, subprocess.TimeoutExpired) as error:
        return ScenarioOutcome(float("nan"), "more than the bench does", [str(error)])


def main() -> None:
    """Prints the table; ends with 1 if something differs from an undisturbed run."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    words.add_argument("--log", type=Path, default=Path("faults.log"), help="what the commands print goes here")
    words.add_argument("--only", default="", metavar="NAME", help="scenarios with this in their name")
    words.add_argument("--list", action="store_true", help="print the names of the scenarios, and run none")
    words.add_argument("--port", type=int, default=6380, help="for Ray's control store")
    words.add_argument("--seed", type=int, default=1, help="of the moments at which the corpus stage is killed")
    given = words.parse_args()
    chosen = [scenario for scenario in SCENARIOS if given.only in scenario.name]
    if given.list or not chosen:
        print(*(scenario.name for scenario in chosen or SCENARIOS), sep="\n")
        sys.exit(not chosen)
    # So that `make bench` does not fail where no run is finished.
    if not RunFolder(given.run).manifest("report"):
        left_out = [scenario.name for scenario in chosen if scenario.needs_run]
        chosen = [scenario for scenario in chosen if not scenario.needs_run]
        print(f"{given.run} is not finished: run `make demo` first; left out: {'; '.join(left_out)}", flush=True)
    settings = Settings(given.run, given.log, given.port, given.seed)
    table = Table("scenario", "seconds to go on", "what the user did", "wrong", "details")
    failed = False
    for scenario in chosen:
        found = survive(scenario, settings)
        failed |= bool(found.wrong)
        wrong = "; ".join(found.wrong) or "nothing"
        print(f"{scenario.name}: {found.seconds:.1f} s; wrong: {wrong}; {found.details}", flush=True)
        table.add_row(scenario.name, f"{found.seconds:.1f}", found.recovery, wrong, found.details)
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
