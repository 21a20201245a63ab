"""The list of rounds and runs: verdicts, dates and reports, of the served run's folder and of nothing beside it."""

import json
import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from cluster.run.folder import RunFolder
from cluster.run.rounds import keep_round
from serve.pages.run_list import list_rounds, list_runs
from serve.pages.runs import runs_router
from tests.serve.support.run_folder import write_run


def report(run: RunFolder, text: str, verdict: str) -> None:
    """Writes a run's report anew, the same as a stage does: the former one stays in its round."""
    folder = run.path("report")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["metrics"] = {"verdict": verdict}
    for name, content in (("manifest.json", json.dumps(manifest)), ("index.html", text)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)


def test_rounds_have_their_verdicts_dates_and_reports(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", finished=7)
    report(run, "the first report", "Better.\nLonger.")
    os.utime(run.path("report") / "manifest.json", (2e9, 2e9))
    keep_round(run.root, "report")
    report(run, "the second report", "Worse.")
    newest, first = list_rounds(run)
    assert (newest["verdict"], newest["report"], first["verdict"], first["report"]) == ("Worse.", True, "Better.", True)
    assert first["when"].startswith("2033-05-1")
    assert newest["when"] < first["when"]
    write_run(tmp_path / "other", finished=7)
    report(RunFolder(tmp_path / "other"), "another run's report", "The same.")
    app = FastAPI()
    app.include_router(runs_router(run.root))
    with TestClient(app) as client:
        said = {query: client.get(f"/runs/report{query}").text for query in ("", "?round=1", "?round=2", "?name=other")}
        assert list(said.values()) == [
            "the second report",
            "the first report",
            "the second report",
            "another run's report",
        ]
        for query in ("?round=3", "?name=..", "?name=../mine", "?name=other&round=7", f"?name={tmp_path / 'other'}"):
            assert client.get(f"/runs/report{query}").status_code == 404


def test_the_runs_of_the_folder_are_listed_with_their_troubles(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    run = write_run(folder / "mine", finished=7)
    report(run, "text", "Better.\nLonger.")
    write_run(folder / "begun", finished=2)
    write_run(folder / "damaged", finished=3).path("sft").joinpath("manifest.json").write_text("{")
    (folder / "notes").mkdir()
    write_run(elsewhere, finished=7)
    (folder / "linked").symlink_to(elsewhere)
    found = list_runs(run)
    rows = {row["name"]: row for row in found["runs"]}
    assert (found["here"], found["count"], sorted(rows)) == ("mine", 3, ["begun", "damaged", "mine"])
    assert (rows["mine"]["stages"], rows["mine"]["rounds"], rows["mine"]["verdict"]) == (7, 1, "Better.")
    assert (rows["mine"]["report"], rows["begun"]["report"], rows["begun"]["rounds"]) == (True, False, 0)
    assert rows["begun"]["stages"] == 2
    assert "sft/manifest.json is damaged" in rows["damaged"]["trouble"]
