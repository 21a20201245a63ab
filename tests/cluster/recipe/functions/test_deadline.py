import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.functions import LateError, call_within, failure_reason, items_within, load, load_function
from cluster.recipe.functions.deadline import ExitCalledError


def _catches_all() -> None:
    try:
        time.sleep(20)
    except Exception:  # noqa: BLE001
        time.sleep(20)


@pytest.mark.parametrize(
    "hangs",
    [lambda: time.sleep(20), lambda: re.match("(a+)+b", "a" * 40), threading.Event().wait, _catches_all],
    ids=["sleep", "regular expression", "lock", "catches exceptions"],
)
def test_a_call_that_hangs_ends_at_its_deadline(hangs: Callable[[], object]) -> None:
    begin, handler, timer = time.monotonic(), signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(LateError, match=r"^took longer than 0.05 s$"):
        call_within(0.05, hangs)
    assert time.monotonic() - begin < 18
    assert signal.getsignal(signal.SIGALRM) == handler
    # The timer that pytest may have set as this test's deadline is still running.
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(timer[0], abs=60)


def test_calls_outside_the_main_thread_have_a_deadline_too() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(call_within, 60, lambda number: number + 1, 1).result() == 2
        with pytest.raises(LateError):
            pool.submit(call_within, 0.05, time.sleep, 1).result()


def test_what_a_function_returns_or_raises_passes() -> None:
    def fails() -> None:
        raise TimeoutError("of its own")

    assert call_within(60, sorted, [2, 1]) == [1, 2]
    with pytest.raises(TimeoutError, match="of its own"):
        call_within(60, fails)


@pytest.mark.parametrize("code", [0, None, "no network"])
def test_a_function_that_calls_exit_fails_and_does_not_end_the_command(code: object) -> None:
    for within in (call_within, lambda *words: ThreadPoolExecutor(1).submit(call_within, *words).result()):
        with pytest.raises(ExitCalledError) as caught:
            within(60, sys.exit, code)
        assert failure_reason(caught.value) == f"called sys.exit({code!r}), and must return instead"


def test_the_exit_of_a_signal_passes_through_a_function() -> None:
    with pytest.raises(SystemExit):
        call_within(60, sys.exit, 128 + signal.SIGTERM)


def test_a_module_that_calls_exit_when_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exiting_module.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^reward function exiting_module:f: importing .* called sys\.exit\(None\)"):
        load_function("exiting_module:f")


def test_every_item_of_a_source_has_the_deadline() -> None:
    def slow() -> Iterator[int]:
        yield 1
        yield 2
        time.sleep(20)

    found = []
    with pytest.raises(LateError):
        found.extend(items_within(0.1, slow))
    assert list(items_within(60, lambda: [1, None])) == [1, None]


def test_a_module_that_hangs_when_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_module.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(load, "IMPORT_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"^reward function hanging_module:f: importing .* took longer than 0.05 s$"):
        load_function("hanging_module:f")


def test_a_failure_is_one_line() -> None:
    assert failure_reason(KeyError("no\nsuch \ud800 key")) == r"raised KeyError: 'no\nsuch \ud800 key'"
    assert len(failure_reason(ValueError("x" * 1000))) == 300
