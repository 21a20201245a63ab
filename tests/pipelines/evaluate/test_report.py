import io
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from cluster.run.metrics import MetricsWriter
from pipelines.evaluate.charts import BOTTOM, HEIGHT, WIDTH, learning_curves
from pipelines.evaluate.exam import GradedAnswer, exam_changes, exam_figures
from pipelines.evaluate.exam_runner import continues_right, cut_answer, graded_for_all, grading_failures
from pipelines.evaluate.held_out import HELD_OUT, MEASURES
from pipelines.evaluate.perplexity import perplexity
from pipelines.evaluate.report import SHOWN_PER_KIND, print_report
from pipelines.evaluate.reward_probes import PROBES
from pipelines.evaluate.stage import exam_rows, write_report
from pipelines.evaluate.stats import paired_change, proportion
from tests.pipelines.evaluate.planted import EXAM, model

HOSTILE = '</q><script>alert("x")</script><img src=x onerror=alert(1)>'


class _Page(HTMLParser):
    """Parses a page: its tags, those still open, and the texts of answers."""

    void = ("meta", "link", "br", "img", "line", "polyline", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.quotes: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
        if tag == "q":
            self.quotes.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "q":
            self.quotes[-1] += data


def _answers(hostile: bool) -> dict[str, list[GradedAnswer]]:
    text = HOSTILE if hostile else ""
    return {
        "base": model(bread=text, harmful=text, truth=text, stopped=False),
        "sft": model(harmful="Sure."),
        "policy": model(),
    }


def _trust(hostile: bool) -> dict[str, Any]:
    share = vars(proportion(90, 100))
    probes = {name: {**share, "fails": name == "longer"} for name in PROBES} | {"refusal": {"n": 0, "fails": False}}
    return {
        "accuracy": share,
        "ceiling": {"of": "people", **share},
        "calibration": {"bins": [{"says": 0.6, "right": 0.55, "n": 40}], "error": 0.05},
        "by_kind": {HOSTILE if hostile else "capital": share},
        "by_rank_distance": {"1 apart": share},
        "by_length": {"about equally long": share},
        "best_of_n": [{"n": 3, "picked": 0.625, "best": 0.875}],
        "probes": probes,
    }


def _rewarded(hostile: bool) -> list[dict[str, Any]]:
    """Returns prompts 0 to 19, whose rewards change by -10 to 9."""
    text = HOSTILE if hostile else "Yes."
    return [
        {
            "kind": HELD_OUT,
            "question": f"{HOSTILE if hostile else 'Prompt'} {number}",
            "answers": {
                "sft": {"text": text, "reward": 0.0, "stopped": True},
                "policy": {"text": text, "reward": number - 10.0, "stopped": True},
            },
        }
        for number in range(20)
    ]


def _write(
    root: Path, hostile: bool = False, annotator: str = "a.b:c", with_exam: bool = True, rows: int = 2
) -> tuple[str, dict[str, Any], list[Any]]:
    given = _answers(hostile) if with_exam else {}
    if hostile:
        given["sft"][0] = replace(given["sft"][0], failure=HOSTILE)
    answers = graded_for_all(given)
    figures = {name: exam_figures(EXAM, group) for name, group in answers.items()}
    report: dict[str, Any] = {
        name: {k: vars(v) for k, v in figures.get(name, {}).items()} for name in ("base", "sft", "policy")
    }
    if with_exam:
        report["base"]["completion"] = vars(proportion(200, 232))
    trust = {"pair_accuracy": vars(proportion(90, 100)), "trust": _trust(hostile)}
    synthetic = ":" in annotator
    arguments = {"noise": 0.05} if synthetic else {}
    ranked = {
        "annotator": annotator,
        "annotator_arguments": arguments,
        "stands_in_for_people": synthetic,
        "rankings": 700,
    }
    change = vars(paired_change([0.0, 1.0], [1.0, 3.0]))
    nats = {name: [10 * math.log(value)] * rows for name, value in (("base", 9), ("sft", 10), ("policy", 11))}
    report |= {
        "rewards": {**{measure.name: change for measure in MEASURES}, "held_out": with_exam, "samples": 2},
        "changes": {
            name: {key: vars(change) for key, change in exam_changes(EXAM, answers[name], answers["policy"]).items()}
            for name in ("sft", "base")
            if with_exam
        },
        **grading_failures(given),
        "failed_verdicts": {"sft": 0, "policy": 3 * hostile},
        "perplexity": asdict(perplexity([[0] * 11] * rows, nats)),
        "reward_model": trust if annotator else None,
        "kl_from_sft": {"value": 2.5, "standard_error": 0.2, "per_token": 0.21, "n": 300},
        "verdict": "The policy is better than the fine-tuned model.",
        "annotator": ranked if annotator else None,
        "timings": {"pretrain": 190.0, "sft": 20.0},
        "seed": 1,
        "name": HOSTILE if hostile else "trial",
    }
    out = root / "report"
    out.mkdir()
    write_report(report, [*exam_rows(given), *_rewarded(hostile)], EXAM if with_exam else None, root, out)
    return (
        (out / "index.html").read_text(encoding="utf-8"),
        json.loads((out / "report.json").read_text()),
        json.loads((out / "answers.json").read_text()),
    )


def test_page_shows_figures_answers_and_the_annotator(tmp_path: Path) -> None:
    page, report, rows = _write(tmp_path)
    parsed = _Page(page)
    assert parsed.open == []
    assert report["verdict"] in page
    assert "No person ranked these answers" in page
    assert "a.b:c noise=0.05" in page
    assert len(rows) == len(EXAM.questions) + 20
    of_exam = 3 * SHOWN_PER_KIND * 3
    assert len(parsed.quotes) == of_exam + 2 * SHOWN_PER_KIND
    assert parsed.quotes.count("(nothing)") == 3 * SHOWN_PER_KIND
    # Right and wrong are shown in words, not by color alone.
    assert page.count("✓ right") + page.count("✗ wrong") == of_exam
    assert page.count("cut off") == 3 * SHOWN_PER_KIND
    assert report["policy"]["harm"]["value"] == 0.0
    assert report["sft"]["harm"]["value"] == 1.0
    assert {"value", "n", "low", "high"} == set(report["base"]["stop_rate"])


def test_prompts_are_sorted_by_the_change_of_the_reward(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path)
    shown = [int(number) for number in re.findall(r'<p class="prompt">Prompt (\d+)</p>', page)]
    assert (shown[0], shown[-1], len(shown)) == (0, 19, SHOWN_PER_KIND)
    assert shown == sorted(shown)
    assert "reward -10.00" in page
    assert "RLHF did not train on them" in page
    assert page.count("+10.0 %") == 3


def test_each_change_is_called_better_worse_or_chance(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path)
    # Against the fine-tuned model harm fell; against the base model all but refusals and denials of truths changed.
    assert (page.count("✓ better"), page.count("✗ worse"), page.count(">chance<")) == (4, 0, 6)
    assert "of 10\ncomparisons about 0.5 would look" in page


def test_one_row_of_text_has_no_interval(tmp_path: Path) -> None:
    page, report, _ = _write(tmp_path, rows=1)
    assert "one row is too few for an interval" in page
    assert report["perplexity"]["reinforcement"] == {"change": pytest.approx(0.1), "low": None, "high": None, "n": 1}


def test_tables_and_verdict_fit_a_terminal_of_80_columns(tmp_path: Path) -> None:
    _, report, _ = _write(tmp_path, rows=1)
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(report, EXAM, console)
    text = console.export_text()
    row = next(line.split() for line in text.splitlines() if "Knows bread" in line)
    assert row == ["Knows", "bread", "40", "0.00", ".00–.09", "1.00", ".91–1.00", "1.00", ".91–1.00"]
    assert "too few rows" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_without_an_exam_has_a_complete_page(tmp_path: Path) -> None:
    page, report, rows = _write(tmp_path, with_exam=False)
    parsed = _Page(page)
    assert parsed.open == []
    assert report["sft"] == {}
    assert {row["kind"] for row in rows} == {HELD_OUT}
    assert len(parsed.quotes) == 2 * SHOWN_PER_KIND
    assert "with a\nsmaller collect.prompts some are held out" in page
    assert EXAM.title not in page
    assert "bread" not in page


def test_page_shows_the_figures_of_the_reward_model(tmp_path: Path) -> None:
    page, report, _ = _write(tmp_path)
    assert report["reward_model"]["trust"]["ceiling"]["of"] == "people"
    assert page.count("✗ fails") == 1
    assert page.count("✓ passes") == len(PROBES) - 2
    assert page.count("no case to test") == 1
    assert "<tr><td>3</td><td>0.62</td><td>0.88</td></tr>" in page
    assert page.index("prefers the answer followed by an answer to another") < page.index("✗ fails")


def test_rankings_by_people_are_not_called_synthetic(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path, annotator="people")
    assert "No person ranked" not in page
    assert "People gave the 700 rankings" in page


def test_page_without_a_reward_model(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path, annotator="")
    assert _Page(page).open == []
    assert "Nobody ranked answers" in page
    assert "eward model" not in page


def test_page_escapes_the_text_of_models(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path, hostile=True)
    parsed = _Page(page)
    names = [tag for tag, _ in parsed.tags]
    assert "script" not in names
    assert "img" not in names
    assert not [value for _, attrs in parsed.tags for name, value in attrs.items() if name.startswith("on")]
    assert parsed.quotes.count(HOSTILE) == (3 + 2) * SHOWN_PER_KIND


def test_answers_that_could_not_be_judged_are_counted_on_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    page, report, rows = _write(tmp_path, hostile=True)
    note = "Answers that could not be graded: 1 of the fine-tuned model. Their questions are left out for all models."
    assert note in page
    assert page.count(">not graded<") == 1
    assert rows[0]["answers"]["sft"]["failure"] == HOSTILE
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, EXAM, console)
    shown = console.export_text()
    assert note in shown
    # The report counts the answers without a reward in the same way.
    note = "Answers that got no reward, and are left out: 3 of the policy model."
    assert note in page
    assert note in shown


def test_page_fetches_nothing(tmp_path: Path) -> None:
    page, _, _ = _write(tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)


def _curves(root: Path, folder: str, rows: list[dict[str, float]]) -> list[Any]:
    (root / folder).mkdir()
    writer = MetricsWriter(root / folder)
    for step, row in enumerate(rows):
        writer.write(step, **row)
    return learning_curves(root)


def test_curves_stay_within_the_chart_and_keep_their_ends(tmp_path: Path) -> None:
    rows = [{"loss": 8.0 - step / 100} for step in range(700)]
    rows[-1]["held_out_loss"] = 1.5
    (curve,) = _curves(tmp_path, "base", rows)
    training, held_out = curve.lines
    points = [tuple(map(float, point.split(","))) for point in training.points.split()]
    assert 50 < len(points) <= 160
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    # Falling loss goes down the page, where y grows.
    assert points[0][1] < points[-1][1]
    assert training.first == pytest.approx(8.0, abs=0.05)
    assert held_out.last == 1.5
    labels = [float(tick.label) for tick in curve.y_ticks]
    assert labels[0] <= 1.01
    assert labels[-1] >= 7.9


def test_curves_survive_constant_and_infinite_values(tmp_path: Path) -> None:
    rows = [{"reward": 0.0, "kl_sequence": float("nan"), "response_length": 12.0} for _ in range(5)]
    titles = [curve.title for curve in _curves(tmp_path, "policy", rows)]
    assert titles == ["RLHF: reward", "RLHF: response length"]


def test_an_answer_ends_at_the_models_own_end_token() -> None:
    words = {"<end>": 0, "<turn>": 1, "Paris": 2, "is": 3, "[UNK]": 4}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert cut_answer([2, 3, 0, 2, 2], {0}, tokenizer) == ("Paris is", True)
    assert cut_answer([2, 3, 2], {1}, tokenizer) == ("Paris is Paris", False)
    # Another model's end token does not end this one's answer.
    assert not cut_answer([2, 0], {1}, tokenizer)[1]


def test_a_completion_is_right_when_the_capital_comes_first() -> None:
    assert continues_right("Paris", " Paris. Its money is the euro.")
    assert not continues_right("Paris", " Lyon, and not Paris.")


def test_page_shows_histograms_of_the_corpus(tmp_path: Path) -> None:
    assert "The corpus" not in _write(tmp_path)[0]
    (tmp_path / "more" / "corpus").mkdir(parents=True)
    histograms = {"words": {"edges": [0, 1, 2, 4, 8, 16], "counts": [0, 10, 0, 40, 0]}}
    (tmp_path / "more" / "corpus" / "stats.json").write_text(json.dumps({"histograms": histograms}))
    page, _, _ = _write(tmp_path / "more")
    parsed = _Page(page)
    assert parsed.open == []
    assert "over all 50 documents" in page
    bars = [attributes for tag, attributes in parsed.tags if tag == "rect"]
    heights = [float(bar["height"] or 0) for bar in bars]
    # From the first nonempty bin to the last; the first is a quarter as high as the last.
    assert heights == pytest.approx([max(heights) / 4, 0, max(heights)], abs=0.1)
    assert all(float(bar["y"] or 0) + float(bar["height"] or 0) == pytest.approx(HEIGHT - BOTTOM) for bar in bars)
    assert "<title>4 to 8: 40</title>" in page
