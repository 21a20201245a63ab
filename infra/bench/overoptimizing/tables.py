"""The tables of the study: true reward against proxy by divergence, and how well each sign tells of a fall."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from infra.bench.overoptimizing.detectors import JOINT, SINGLE, Course, Detector, DetectorResult, Run, joint, split
from infra.bench.overoptimizing.run import STEPS
from pipelines.evaluate.stats import proportion

# Ends of ranges of the divergence, in nats an answer.
DIVERGENCES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, np.inf)
WITHOUT_KL = {name: values for name, values in JOINT.items() if name != "log KL"}


def print_tables(runs: Sequence[Run], console: Console) -> None:
    """Prints both tables; with too few runs to fit a detector, the first alone."""
    console.print(reward_table(runs))
    courses = [Course.of(run) for run in runs]
    falls = sum(course.fell is not None for course in courses)
    console.print(
        f"of {len(runs)} runs the true reward falls in {falls}; at the best step of each run it is "
        f"{np.mean([course.truth.max() for course in courses]):.2f} on average, at the start "
        f"{np.mean([course.truth[0] for course in courses]):.2f}, at the end "
        f"{np.mean([course.truth[-1] for course in courses]):.2f}"
    )
    if min(map(len, split(runs))) > 1:
        console.print(detector_table(runs))


def reward_table(runs: Sequence[Run]) -> Table:
    """Makes the table of proxy and true reward by divergence: the mean over steps of each size of reward model."""
    table = Table("KL, nats an answer", title="mean reward by the reward model / by the judge, and steps")
    ends = list(itertools.pairwise(DIVERGENCES))
    counts = sorted({run["rankings"] for run in runs})
    for count in counts:
        table.add_column(f"{count} rankings", justify="right")
    for low, high in ends:
        cells = []
        for count in counts:
            steps = [step for run in runs if run["rankings"] == count for step in run["steps"]]
            own = [step for step in steps if low <= max(0.0, step["kl_sequence"]) < high]
            proxy, true = (
                float(np.mean([step[name] for step in own])) if own else np.nan for name in ("reward", "gold")
            )
            cells.append(f"{proxy:.2f} / {true:.2f} ({len(own)})" if own else "")
        table.add_row(f"{low:g} to {high:g}" if high < np.inf else f"above {low:g}", *cells)
    return table


def detector_table(runs: Sequence[Run]) -> Table:
    """Makes the table of detectors: each half of the settings is tested with what is fit on the other half."""
    halves = split(runs)
    table = Table(
        "sign",
        "thresholds",
        "falls found",
        "in time",
        "false alarms a run",
        "lead, steps (quartiles)",
        "true reward kept",
        title=f"detectors, fit on half of the settings and tested on the other, both ways; runs of {STEPS} steps",
    )
    for name in (*SINGLE, "jointly", "jointly, without KL"):
        fitted = [_fitted(name, fit) for fit in halves]
        outcomes = [one.outcome(test) for one, test in zip(fitted, reversed(halves), strict=True)]
        table.add_row(name, ", ".join(f"{one.threshold:.2g}" for one in fitted), *_cells(_sum(outcomes)))
    return table


def _fitted(name: str, runs: Sequence[Run]) -> Detector:
    if name in SINGLE:
        return Detector(name, SINGLE[name]).fitted(runs)
    detector, _ = joint(runs, JOINT if name == "jointly" else WITHOUT_KL)
    return detector.fitted(runs)


def _sum(outcomes: Sequence[DetectorResult]) -> DetectorResult:
    runs = sum(one.runs for one in outcomes)
    return DetectorResult(
        *(sum(getattr(one, field) for one in outcomes) for field in ("falls", "found", "in_time", "false")),
        runs,
        [lead for one in outcomes for lead in one.leads],
        sum(one.kept * one.runs for one in outcomes) / runs,
    )


def _cells(found: DetectorResult) -> list[Any]:
    leads = np.percentile(found.leads, (50, 25, 75)) if found.leads else []
    return [
        _share(found.found, found.falls),
        _share(found.in_time, found.falls),
        _share(found.false, found.runs),
        f"{leads[0]:.0f} ({leads[1]:.0f} to {leads[2]:.0f})" if len(leads) else "",
        f"{found.kept:.2f}",
    ]


def _share(count: int, of: int) -> str:
    if not of:
        return ""
    share = proportion(count, of)
    return f"{share.value:.2f} ({share.low:.2f}-{share.high:.2f})"
