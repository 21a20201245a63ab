"""Prints the report's figures in tables that fit a terminal of 80 columns, and the verdict."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.evaluate.exam import Exam
from pipelines.evaluate.held_out import MEASURES
from pipelines.evaluate.report import MODELS, ungraded_note, unrewarded_note
from pipelines.evaluate.tasks.tables import print_tasks, two_digits


def print_report(report: Mapping[str, Any], exam: Exam | None, console: Console) -> None:
    """Prints the tables, remarks on the models, and the verdict, one sentence a line.

    Args:
        report: the content of report.json.
        exam: the exam that the models took, if any.
        console: the console to print on.
    """
    remarks = []
    if exam:
        console.print(_exam_table(report, exam))
        if note := ungraded_note(report):
            console.print(note, highlight=False, markup=False)
    if exam and exam.completions:
        remarks.append(f"the base model continues {report['base']['completion']['value']:.2f} of sentences rightly")
    console.print(_rewards_table(report))
    if note := unrewarded_note(report):
        console.print(note, highlight=False, markup=False)
    if report["perplexity"]:
        console.print(_perplexity_table(report["perplexity"]))
    print_tasks(report.get("tasks", {}), console)
    console.print("; ".join([*remarks, f"KL from sft: {report['kl_from_sft']['value']:.1f} nats per answer"]))
    console.print(report["verdict"], highlight=False, markup=False)


def _exam_table(report: Mapping[str, Any], exam: Exam) -> Table:
    table = _table(f"{report['name']}: held-out questions, shares with 95 % intervals", "", "n", *MODELS)
    for figure in exam.figures:
        cells = [report[name][figure.name] for name in MODELS]
        shares = [f"{cell['value']:.2f} {two_digits(cell['low'])}–{two_digits(cell['high'])}" for cell in cells]
        table.add_row(figure.title, str(cells[0]["n"]), *shares)
    return table


def _rewards_table(report: Mapping[str, Any]) -> Table:
    rewards = report["rewards"]
    kind = "held out from RLHF" if rewards["held_out"] else "that RLHF trained on"
    title = f"{report['name']}: answers to {rewards['reward']['n']} prompts {kind}, 95 % intervals"
    table = _table(title, "", "sft", "policy", "change")
    for measure in MEASURES:
        cell = rewards[measure.name]
        interval = "one prompt" if cell["low"] is None else f"{cell['low']:+.2f} to {cell['high']:+.2f}"
        change = f"{cell['change']:+.2f} ({interval})"
        table.add_row(measure.title, f"{cell['before']:.2f}", f"{cell['after']:.2f}", change)
    return table


def _perplexity_table(text: Mapping[str, Any]) -> Table:
    title = f"perplexity of held-out text: {text['tokens']:,} tokens in {text['rows']} row{'s' * (text['rows'] > 1)}"
    table = _table(title, "", "perplexity", "change", "95 % interval")
    for name, change in (("base", None), ("sft", "fine_tuning"), ("policy", "reinforcement")):
        found = text[change] if change else None
        table.add_row(name, f"{text[name]:.2f}", f"{found['change']:+.1%}" if found else "", ratio_interval(found))
    table.add_row("policy, from base", "", f"{text['alignment']['change']:+.1%}", ratio_interval(text["alignment"]))
    return table


def ratio_interval(change: Mapping[str, Any] | None) -> str:
    """Formats the interval of a relative change, a dictionary of `stats.RatioChange`."""
    if change is None:
        return ""
    if change["low"] is None:
        return "too few rows"
    return f"{change['low']:+.1%} to {change['high']:+.1%}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table
