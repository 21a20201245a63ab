"""Evaluations of an address: whose results are kept, and whose are not."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import StageError
from pipelines.evaluate.tasks.items import EvaluationTask, Item
from pipelines.evaluate.tasks.run import evaluate_alone
from tests.openai_server import coded_server

TASK = EvaluationTask(
    "sum", "Sum", "checked", [Item("0", "1 + 1?", check=lambda said: said == "2", expected="2")], chat=True
)


def evaluated(url: str, out: Path) -> str:
    console = Console(record=True, width=200)
    evaluate_alone(url, [TASK], out, None, True, None, console)
    return console.export_text()


@pytest.mark.parametrize("told", [True, False])
def test_results_of_other_weights_are_not_kept(tmp_path: Path, told: bool):
    answers = {"1 + 1?": "2"}
    with coded_server(lambda question: answers.get(question, answers["1 + 1?"])) as server:
        server.weights = "aaaa" if told else ""
        assert "finished before" not in evaluated(server.url, tmp_path)
        asked = len(server.asked)
        assert "1 of 1 tasks were finished before" in evaluated(server.url, tmp_path)
        # The weights were asked for, and nothing else.
        assert len(server.asked) == asked + 1
        server.weights = "bbbb" if told else ""
        answers["1 + 1?"] = "3"
        again = evaluated(server.url, tmp_path)
    assert "run again, as the model or the items are others than before: sum" in again
    assert "0.00" in again


def test_weights_that_change_during_a_task_give_no_result(tmp_path: Path):
    def say(question: str) -> str:
        if question == "1 + 1?":
            server.weights = "bbbb"
        return "2"

    with coded_server(say) as server:
        server.weights = "aaaa"
        with pytest.raises(StageError, match="has changed its weights from aaaa to bbbb during the task sum"):
            evaluated(server.url, tmp_path)
    assert not list((tmp_path / "done").iterdir())


def test_the_key_of_an_address_is_its_own(tmp_path: Path):
    def other(question: str) -> Any:
        return "2" if question == "1 + 1?" else "x"

    with coded_server(other) as one, coded_server(other) as two:
        evaluated(one.url, tmp_path)
        assert "finished before" not in evaluated(two.url, tmp_path)
