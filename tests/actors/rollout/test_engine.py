"""Several threads at one engine, on an engine that only counts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from actors.rollout.engine import SharedEngine
from tests.helpers import wait_until

SECONDS = 30


@dataclass
class Output:
    request_id: str
    text: str
    finished: bool


@dataclass
class CountingEngine:
    """Finishes a request after as many steps as its parameter says; refuses "bad" ones, and breaks over "fatal" ones.

    `together` are the most requests that one step went on with; `threads` those that touched it.
    """

    left: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    together: int = 0
    threads: set[int] = field(default_factory=set)

    @property
    def llm_engine(self) -> "CountingEngine":
        return self

    def add_request(self, name: str, request: str, steps: int) -> None:
        self.threads.add(threading.get_ident())
        if request == "bad":
            raise ValueError("refused")
        self.left[name], self.texts[name] = steps, request

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.left.pop(name, None)

    def step(self) -> list[Output]:
        self.threads.add(threading.get_ident())
        time.sleep(0.005)
        if "fatal" in (self.texts[name] for name in self.left):
            raise RuntimeError("the engine broke")
        self.together = max(self.together, len(self.left))
        self.left = {name: steps - 1 for name, steps in self.left.items()}
        outputs = [Output(name, f"{self.texts[name]}!", steps == 0) for name, steps in self.left.items()]
        self.left = {name: steps for name, steps in self.left.items() if steps}
        return outputs


def test_each_call_gets_its_own_answers_and_one_thread_alone_touches_the_engine():
    engine = CountingEngine()
    shared = SharedEngine(lambda: engine)
    calls = [([f"{number}-{index}" for index in range(3)], [5 + number] * 3) for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda call: [one.text for one in shared.generate(*call)], calls, timeout=SECONDS))
    assert found == [[f"{request}!" for request in requests] for requests, _ in calls]
    assert engine.together > 3
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads
    assert shared.generate([], []) == []


def test_a_refused_request_takes_those_beside_it_back_and_no_other():
    engine = CountingEngine()
    shared = SharedEngine(lambda: engine)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(shared.generate, ["long"], [40])
        with pytest.raises(ValueError, match="refused"):
            shared.generate(["good", "bad"], [1, 1])
        assert [one.text for one in other.result(SECONDS)] == ["long!"]
    assert engine.left == {}


def test_all_waiting_callers_get_the_error_of_a_broken_engine():
    shared = SharedEngine(CountingEngine)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(shared.generate, [request], [1000]) for request in ("one", "two", "fatal")]
        for one in waiting:
            with pytest.raises(RuntimeError, match="broke"):
                one.result(SECONDS)


def test_other_work_is_done_between_two_steps_and_before_the_answers_are_there():
    engine = CountingEngine()
    shared = SharedEngine(lambda: engine)

    def left_while_it_takes_long() -> tuple[dict[str, int], dict[str, int]]:
        before = dict(engine.left)
        time.sleep(0.05)
        return before, dict(engine.left)

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(shared.generate, ["long"], [50])
        wait_until(lambda: bool(engine.left), SECONDS, "the request to be added")
        before, after = shared.run(left_while_it_takes_long)
        assert before == after
        assert not answer.done()
        assert [one.text for one in answer.result(SECONDS)] == ["long!"]
