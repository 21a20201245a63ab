"""The report's page: one file without remote assets, in which everything a model said is escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.evaluate.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Histogram
from pipelines.evaluate.exam import Exam
from pipelines.evaluate.held_out import MEASURES
from pipelines.evaluate.reward_probes import PROBES

MODELS = {"base": "Base", "sft": "Fine-tuned", "policy": "Policy"}
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
        report: what report.json holds.
        answers: what answers.json holds.
        curves: learning curves of the stages.
        histograms: of the corpus's documents.
        exam: whose questions the models were asked, if there was one.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    kinds = exam.kinds.items() if exam else ()
    longest = max(report["timings"].values(), default=1.0)
    return template.render(
        report=report,
        exam=exam,
        probes=PROBES,
        models=MODELS,
        curves=curves,
        histograms=histograms,
        measures=MEASURES,
        groups=[(title, note, _spread(_of_kind(answers, kind))) for kind, (title, note) in kinds],
        rewarded=_spread(sorted(_of_kind(answers, "kept back"), key=_gain)),
        timings=[(name, seconds, seconds / (longest or 1.0)) for name, seconds in report["timings"].items()],
        total=_duration(sum(report["timings"].values())),
        duration=_duration,
        drawing={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def _of_kind(answers: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [row for row in answers if row["kind"] == kind]


def _gain(row: Mapping[str, Any]) -> float:
    return float(row["answers"]["policy"]["reward"] - row["answers"]["sft"]["reward"])


def _spread(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some of them, taken evenly over all, both ends among them: neighbors are much alike."""
    count = min(SHOWN_PER_KIND, len(rows))
    return [rows[round(index * (len(rows) - 1) / max(1, count - 1))] for index in range(count)]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
