import json
import re
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.folder import RunFolder
from pipelines.cli.rounds import rounds
from tests.cluster.run.test_rounds import make_round


def test_rounds_are_listed_compared_and_brought_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rounds(tmp_path, "list")
    assert "has no round yet" in capsys.readouterr().out
    make_round(tmp_path, "one")
    make_round(tmp_path, "two")
    for root, accuracy in ((tmp_path / "rounds" / "1", 0.625), (tmp_path, 0.75)):
        path = root / "reward" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["metrics"] = {"pair_accuracy": {"value": accuracy, "low": 0.5, "high": 0.875, "n": 9}}
        path.write_text(json.dumps(manifest))
    rounds(tmp_path, "list")
    shown = capsys.readouterr().out
    assert "2 (present)" in shown
    assert "0.625" in shown
    monkeypatch.setenv("COLUMNS", "80")
    rounds(tmp_path, "list")
    assert len(re.findall(r"\b\d{4}-\d\d-\d\d \d\d:\d\d\b", capsys.readouterr().out)) == 2
    monkeypatch.setenv("COLUMNS", "200")
    rounds(tmp_path, "diff", [1, 2])
    shown = capsys.readouterr().out
    assert "0.625 (0.500 to 0.875)" in shown
    assert "0.750 (0.500 to 0.875)" in shown
    assert "judgements in both: 0; only round 1: none" in shown
    rounds(tmp_path, "restore", [1])
    assert "has the stages of round 1 again" in capsys.readouterr().out
    assert RunFolder(tmp_path).require("preferences").fingerprint == "preferences one"
    with pytest.raises(UserError, match="has no round 9; it has"):
        rounds(tmp_path, "diff", [1, 9])
    with pytest.raises(UserError, match="write `triptych round"):
        rounds(tmp_path, "restore")
    with pytest.raises(UserError, match="write `triptych round RUN list`"):
        rounds(Path("list"), str(tmp_path))
