"""Renders the report's page: one HTML file without remote assets, in which all text of models is escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.evaluate.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Histogram
from pipelines.evaluate.exam import Exam
from pipelines.evaluate.held_out import HELD_OUT, MEASURES
from pipelines.evaluate.reward_probes import PROBES

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
        total=_duration(sum(report["timings"].values())),
        duration=_duration,
        drawing={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
