"""Prints the figures of tasks in a table that fits a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

MARKS = {"better": "+", "worse": "−", "within chance": ""}


def print_tasks(figures: Mapping[str, Any], console: Console) -> None:
    """Prints a row for every task: chance, cases, and each model's value with its interval.

    A mark stands where a model differs from the one before it beyond chance, after Holm's correction.

    Args:
        figures: the value of `task_figures`.
        console: the console to print on.
    """
    if not figures:
        return
    models = list(next(iter(figures.values()))["models"])
    table = Table(
        title="tasks, with 95 % intervals; + and − differ from the model before beyond chance (Holm)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    for number, heading in enumerate(["", "chance", "n", *models]):
        table.add_column(heading, justify="right" if number else "left")
    for name, figure in figures.items():
        chance = "" if figure["chance"] is None else f"{figure['chance']:.2f}"
        verdicts = ["", *(MARKS[change["verdict"]] for change in figure["changes"].values())]
        cells = [_cell(figure["models"][model], mark) for model, mark in zip(models, verdicts, strict=True)]
        table.add_row(name, chance, str(figure["models"][models[0]]["n"]), *cells)
    console.print(table)
    bad = ", ".join(f"{len(figure['bad_rows'])} of {name}" for name, figure in figures.items() if figure["bad_rows"])
    if bad:
        console.print(f"rows of files that could not be used, and were left out: {bad} (tasks.json names them)")
    for model in models:
        counts = {name: figure["models"][model]["too_long"] for name, figure in figures.items()}
        if listed := ", ".join(f"{count} of {name}" for name, count in counts.items() if count):
            console.print(f"items that did not fit the context of {model}, and were left out: {listed}")


def _cell(found: Mapping[str, Any], mark: str) -> str:
    if found["low"] is None:
        return f"{found['value']:.2f}{mark}"
    return f"{found['value']:.2f}{mark} {two_digits(found['low'])}–{two_digits(found['high'])}"


def two_digits(value: float) -> str:
    """Formats a share without its leading zero: .84."""
    return f"{value:.2f}".removeprefix("0")
