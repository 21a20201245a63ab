"""The data of the run page."""

import json
import math
from pathlib import Path

import pytest

from cluster.run.atomic import write_text
from cluster.run.trail import Decision, add_decision, answer_open_round
from serve.pages.file_cache import FileCache
from serve.pages.runs import MAX_POINTS, MAX_SAMPLES, curves, describe, figures, rollouts, written
from tests.cluster.run.test_rounds import make
from tests.serve.support.run_folder import at_work, write_run


def test_a_run_halfway(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=5)
    shown = describe(run)
    assert [stage["state"] for stage in shown["stages"]] == ["done"] * 5 + ["partial", "pending"]
    assert shown["samples"] == []
    with at_work(run):
        shown = describe(run)
    assert [stage["state"] for stage in shown["stages"]][-2:] == ["working", "pending"]
    sft = next(stage for stage in shown["stages"] if stage["folder"] == "sft")
    base = next(stage for stage in shown["stages"] if stage["folder"] == "base")
    assert sft["inputs"] == {"base": base["fingerprint"]}
    assert sft["weights"] == "0123456789abcdef"
    assert list(sft["figures"]) == ["tokens", "accuracy", "base.right"]
    # The stage in progress shows the curves that it has so far.
    assert shown["stages"][5]["curves"].keys() == {"loss", "held_out_loss"}
    json.dumps(shown, allow_nan=False)


def test_rounds_and_decisions_of_the_loop_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=7)
    path = tmp_path / "report" / "manifest.json"
    manifest = json.loads(path.read_text())
    gain = {"before": 0.0, "after": 0.5, "change": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    manifest["metrics"] = {"verdict": "Better.\nLonger.", "rewards": {"reward": gain}}
    path.write_text(json.dumps(manifest))
    shown = describe(run)
    assert shown["verdict"] == ["Better.", "Longer."]
    assert [(one["round"], one["present"], one["gain"]) for one in shown["rounds"]] == [(1, True, gain)]
    assert shown["decisions"] == []
    # While the next round is being made, its figures are not those of the last one.
    make(run, "preferences", "two")
    add_decision(tmp_path, Decision(2, "begin", "begun", "new"))
    add_decision(tmp_path, Decision(2, "gates", "passed", "all well"))
    shown = describe(run)
    assert shown["verdict"] == []
    assert [(one["round"], one["present"], bool(one["gain"])) for one in shown["rounds"]] == [
        (2, True, False),
        (1, False, True),
    ]
    assert [(one["step"], one["why"]) for one in shown["decisions"]] == [("gates", "all well"), ("begin", "new")]
    assert shown["answerable"] is None
    # Somebody may answer once it is compared, and once.
    add_decision(tmp_path, Decision(2, "compare", "passed", "better"))
    assert describe(run)["answerable"] == 2
    answer_open_round(tmp_path, True, "ann", 2)
    assert describe(run)["answerable"] is None


def test_the_current_stage_is_shown_with_its_steps_and_the_time_left(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=5)
    assert describe(run)["now"] is None
    out = run.partial("policy")
    (out / "metrics.jsonl").unlink()
    with at_work(run):
        assert describe(run)["now"] == {"stage": "rlhf", "round": 1}
        rows = [{"step": step, "time": 100.0 + 2 * step, "reward": 0.5 * step, "kl": 0.1} for step in range(3)]
        rows[0]["steps"] = 10
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        now = describe(run)["now"]
    assert (now["step"], now["steps"], now["left"]) == (3, 10, pytest.approx(14.0))
    assert now["figures"] == {"reward": 1.0, "kl": 0.1}


def test_the_figures_of_the_three_models_begin_with_what_changed_most(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=7)
    path = tmp_path / "report" / "manifest.json"
    manifest = json.loads(path.read_text())
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    models = {name: {"right": figure, "refusals": figure} for name in ("base", "sft", "policy")}
    changes = {"sft": {"right": {"change": 0.1}, "refusals": {"change": -0.4}}}
    manifest["metrics"] = {"verdict": "Better.", "changes": changes, **models}
    path.write_text(json.dumps(manifest))
    shown = describe(run)["models"]
    assert [one["name"] for one in shown] == ["refusals", "right"]
    assert shown[0] == {"name": "refusals", "base": figure, "sft": figure, "policy": figure}


def test_stages_made_from_other_inputs_are_stale(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=7)
    path = run.path("base") / "manifest.json"
    path.write_text(path.read_text().replace("mark of base", "other"))
    shown = {stage["folder"]: (stage["state"], stage["why"]) for stage in describe(run)["stages"]}
    assert shown["sft"] == ("stale", "base was made again since")
    assert shown["preferences"] == ("done", "")


def test_a_run_without_a_corpus_shows_none(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=3)
    path = run.path("base") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {}}))
    assert [stage["name"] for stage in describe(run)["stages"]][:2] == ["pretrain", "sft"]


def test_a_run_whose_rewards_are_computed_ranks_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=6)
    path = run.path("policy") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {}}))
    for folder in ("preferences", "reward"):
        (run.path(folder) / "manifest.json").unlink()
    assert [stage["name"] for stage in describe(run)["stages"]] == ["corpus", "pretrain", "sft", "rlhf", "evaluate"]


def test_samples_are_taken_over_the_whole_file(tmp_path: Path) -> None:
    samples = describe(write_run(tmp_path, finished=7))["samples"]
    numbers = [int(row["question"].rsplit(" ", 1)[1].rstrip("?")) for row in samples]
    assert len(numbers) == MAX_SAMPLES
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 55


def test_curves_keep_both_ends_and_leave_out_what_cannot_be_drawn() -> None:
    rows = [{"step": s, "time": 1.0, "loss": float(s), "odd": math.nan, "flag": True, "once": 1} for s in range(1000)]
    del rows[0]["odd"]
    for row in rows[1:]:
        del row["once"]
    (points,) = curves(rows).values()
    assert len(points) == MAX_POINTS
    assert (points[0], points[-1]) == ((0, 0.0), (999, 999.0))
    assert all(step == value for step, value in points)


def test_samples_are_shown_beside_the_data_and_earlier_samples() -> None:
    def sample(text: str) -> dict[str, str]:
        return {"given": "Peru?", "written": text, "wanted": "Lima."}

    rows = [
        {"step": 0, "samples_before": [sample("x"), sample("y")]},
        {"step": 9, "samples": [sample("a"), sample("b")]},
        {"step": 19, "samples": [sample("Lima"), sample("Lima.")]},
        {"step": 20},
    ]
    answers = [{"before": "x", "now": "Lima", "data": "Lima."}, {"before": "y", "now": "Lima.", "data": "Lima."}]
    asked = [{"question": "Peru?", "answers": answer} for answer in answers]
    assert written(rows) == {"step": 19, "samples": asked}
    fresh = written(rows[1:2])
    assert fresh is not None
    assert fresh["samples"][0]["answers"] == {"now": "a", "data": "Lima."}
    assert written([]) is None
    assert written([{"step": 0}]) is None


def test_the_newest_rollouts_are_shown() -> None:
    rows = [{"step": 0, "rollouts": ["a"]}, {"step": 9, "rollouts": ["b"]}, {"step": 10}]
    assert rollouts(rows) == {"step": 9, "rollouts": ["b"]}
    assert rollouts(rows[2:]) is None


def test_figures_are_numbers_only() -> None:
    metrics = {
        "a": 1,
        "b": {"value": math.inf},
        "c": {"d": {"value": 0.5, "low": 0.1, "text": "x"}},
        "e": "x",
        "f": True,
    }
    assert dict(figures(metrics)) == {"a": {"value": 1}, "c.d": {"value": 0.5, "low": 0.1}}


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    files, read = FileCache(), list[int]()
    path = tmp_path / "a"
    for content in ("one", "one", "two", "three"):
        if not path.exists() or path.read_text() != content:
            write_text(path, content)
        assert files.made_from(path, "text", lambda: read.append(1) or path.read_text()) == content
    assert len(read) == 3
    path.unlink()
    assert files.made_from(path, "text", path.exists) is False


def test_new_steps_of_a_stage_show_though_its_files_are_kept(tmp_path: Path) -> None:
    run, files = write_run(tmp_path, finished=7), FileCache()
    before = describe(run, files)
    assert describe(run, files) == before == describe(run)
    with (run.path("policy") / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 10_000, "time": 0.0, "loss": 7.5}) + "\n")
    policy = next(stage for stage in describe(run, files)["stages"] if stage["folder"] == "policy")
    assert policy["curves"]["loss"][-1] == (10_000, 7.5)
