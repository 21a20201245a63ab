"""Calls of functions in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from actors.functions.caller import LATE_IN_A_ROW, CallLimits, FunctionCaller
from actors.types import Failure
from cluster.errors import UserError
from tests.helpers import fastest, wait_until

FUNCTIONS = "tests.actors.functions.reward_functions"
Called = Callable[..., list[float | Failure]]


@pytest.fixture
def called() -> Iterator[Called]:
    """Calls a function with every answer."""
    callers = []

    def call(name: str, answers: list[str], seconds: float = 30, attempts: int = 1, at_once: int = 4, **row: str):
        callers.append(FunctionCaller(f"{FUNCTIONS}:{name}", "reward function", CallLimits(seconds, attempts, at_once)))
        calls = [{"messages": [], "metadata": row, "answer": answer, "raw_answer": ""} for answer in answers]
        return callers[-1].call_all(calls, lambda index: f"for answer {answers[index]}")

    yield call
    for caller in callers:
        caller.close()
    wait_until(lambda: not _children(), 60, "the processes to end")


def _children() -> list[str]:
    lines = []
    for child in psutil.Process(os.getpid()).children():
        with suppress(psutil.NoSuchProcess):
            lines.append(" ".join(child.cmdline()))
    return [line for line in lines if "actors.functions.child" in line]


def test_numbers_come_back_in_order_whatever_the_function_prints(called: Called):
    assert called("doubled", [str(number) for number in range(50)]) == [2.0 * number for number in range(50)]
    assert called("doubled", []) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "how"),
    [
        ("raise", r"raised KeyError: 'no\nsuch key'"),
        ("nan", "gave nan: it must be a finite number"),
        ("inf", "gave -inf: it must be a finite number"),
        ("none", "gave None: it must be a number, not of type NoneType"),
        ("text", "gave '1.0': it must be a number, not of type str"),
        ("exit", "ended its process (signal 9)"),
        ("hang", "took longer than 2 s"),
    ],
)
@pytest.mark.parametrize("name", ["unsound", "unsound_waits"])
def test_a_call_that_fails_takes_no_other_with_it(called: Called, name: str, answer: str, how: str):
    how = how.replace("\n", r"\n")
    found = called(name, ["a", answer, "b", "c"], seconds=2)
    assert found == [1.0, Failure(f"reward function {FUNCTIONS}:{name} {how}, for answer {answer}"), 1.0, 1.0]


@pytest.mark.parametrize("name", ["unsound", "unsound_waits"])
def test_a_call_touches_none_but_its_own_answer(called: Called, name: str):
    found = called(name, ["a", "read", "fork", "b", "wordless", "c"], seconds=5, at_once=1)
    assert [found[index] for index in (0, 2, 3, 5)] == [1.0] * 4
    assert "raised EOFError" in found[1].reason
    assert "raised WordlessError" in found[4].reason


def test_processes_of_a_call_that_is_too_late_end_with_it(called: Called, tmp_path: Path):
    (found,) = called("leaves_behind", ["a"], seconds=3, folder=str(tmp_path))
    assert "took longer than 3 s" in found.reason
    process = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(process), 60, "what the function had started to end")


def test_processes_of_a_call_end_with_an_actor_that_is_killed(tmp_path: Path):
    code = (
        "import sys; from actors.functions.process import FunctionProcess; "
        f"process = FunctionProcess('{FUNCTIONS}:leaves_behind', 'reward function'); "
        "given = dict(messages=[], metadata={'folder': sys.argv[1]}, answer='', raw_answer=''); "
        "process.call(given, 60).result()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as actor:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60, "the call to begin")
        processes = psutil.Process(actor.pid).children(recursive=True)
        assert int((tmp_path / "pid").read_text()) in {process.pid for process in processes}
        actor.kill()
    wait_until(lambda: not any(map(_runs, processes)), 60, "all processes of the call to end")


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_object_whose_call_is_a_coroutine_function_is_awaited(called: Called):
    assert called("grader", ["1", "2"]) == [1.0, 2.0]


def test_a_coroutine_that_hangs_is_canceled(called: Called):
    found = called("unsound_waits", ["a", "wait", "b"], seconds=2)
    assert found[::2] == [1.0, 1.0]
    assert "took longer than 2 s" in found[1].reason


@pytest.mark.slow
def test_calls_run_side_by_side(called: Called):
    assert called("slow", ["x"] * 40, at_once=8) == [1.0] * 40
    # This includes the start of the process; one after the other the calls would wait 10 s.
    assert fastest(lambda: called("waits", ["x"] * 40), below=8) < 8
    assert called("waits", ["x"] * 40) == [0.5] * 40


def test_a_failed_call_is_made_again(called: Called, tmp_path: Path):
    assert called("once", ["a", "b"], attempts=2, folder=str(tmp_path)) == [1.0, 1.0]
    (tmp_path / "a").unlink()
    (found, other) = called("once", ["a", "b"], folder=str(tmp_path))
    assert "raised ConnectionError: not yet" in found.reason
    assert other == 1.0


@pytest.mark.slow
def test_a_function_that_always_hangs_is_given_up(called: Called):
    begun = time.monotonic()
    found = called("unsound", ["hang"] * 100, seconds=0.2, at_once=4)
    assert time.monotonic() - begun < 60
    reasons = [verdict.reason for verdict in found]
    assert any("took longer than 0.2 s" in reason for reason in reasons)
    assert f"was not called: the last {LATE_IN_A_ROW} calls all took too long" in reasons[-1]


def test_a_plain_function_has_a_main_thread(called: Called):
    assert called("alarmed", ["x"]) == [0.5]


@pytest.mark.parametrize("name", ["no.such.module:f", f"{FUNCTIONS}:nothing"])
def test_a_function_that_is_not_there_is_named(name: str):
    with pytest.raises(UserError, match=f"reward function {name}"):
        FunctionCaller(name, "reward function", CallLimits(1, 1, 1))
