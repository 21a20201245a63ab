"""Renders the report: as one HTML page without remote assets, in which all text of models is escaped, and as tables
that fit a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.run.progress import duration
from pipelines.evaluate.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Histogram
from pipelines.evaluate.exam import Exam
from pipelines.evaluate.held_out import HELD_OUT, MEASURES
from pipelines.evaluate.reward_probes import PROBES
from pipelines.evaluate.tasks.tables import print_tasks, two_digits

MODELS = {"base": "Base", "sft": "Fine-tuned", "policy": "Policy"}
# Answers on the page for each kind of question; answers.json has all.
SHOWN_PER_KIND = 12


def render(
    report: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    curves: Sequence[Curve],
    histograms: Sequence[Histogram] = (),
    exam: Exam | None = None,
) -> str:
    """Renders the report as one HTML page.

    Args:
        report: the content of report.json.
        answers: the content of answers.json.
        curves: learning curves of the stages.
        histograms: the histograms of the corpus's documents.
        exam: the exam that the models took, if any.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    kinds = exam.kinds.items() if exam else ()
    longest = max(report["timings"].values(), default=1.0)
    return template.render(
        report=report,
        exam=exam,
        ungraded=ungraded_note(report),
        unrewarded=unrewarded_note(report),
        probes={name: kind.finding for name, kind in PROBES.items()},
        models=MODELS,
        curves=curves,
        histograms=histograms,
        measures=MEASURES,
        groups=[(title, note, _spread(_of_kind(answers, kind))) for kind, (title, note) in kinds],
        rewarded=_spread(sorted(_of_kind(answers, HELD_OUT), key=_gain)),
        timings=[(name, seconds, seconds / (longest or 1.0)) for name, seconds in report["timings"].items()],
        total=duration(sum(report["timings"].values())),
        duration=duration,
        drawing={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


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


def ungraded_note(report: Mapping[str, Any]) -> str:
    """Says how many answers to the exam could not be graded, and why the first; empty if all could."""
    failed = {name: count for name, count in report.get("failed_gradings", {}).items() if count}
    if not failed:
        return ""
    counts = ", ".join(f"{count} of the {MODELS[name].lower()} model" for name, count in failed.items())
    return (
        f"Answers that could not be graded: {counts}. Their questions are left out for all models. "
        f"The first: {report['grading_failures'][0]}."
    )


def unrewarded_note(report: Mapping[str, Any]) -> str:
    """Says how many answers to held-out prompts got no reward; empty if all did."""
    failed = {name: count for name, count in report.get("failed_verdicts", {}).items() if count}
    counts = ", ".join(f"{count} of the {MODELS[name].lower()} model" for name, count in failed.items())
    return f"Answers that got no reward, and are left out: {counts}." if failed else ""


def _of_kind(answers: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [row for row in answers if row["kind"] == kind]


def _gain(row: Mapping[str, Any]) -> float:
    return float(row["answers"]["policy"]["reward"] - row["answers"]["sft"]["reward"])


def _spread(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Picks `SHOWN_PER_KIND` rows, evenly spaced and with both ends, because neighboring rows are similar."""
    count = min(SHOWN_PER_KIND, len(rows))
    return [rows[round(index * (len(rows) - 1) / max(1, count - 1))] for index in range(count)]
