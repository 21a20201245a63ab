"""Types of the fault scenarios: a scenario with its name and function, the bench's options, and an outcome."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Options of the bench.

    Attributes:
        run: the folder of a finished run.
        log: the file that takes what the commands print.
        port: the port for the control store of a Ray cluster.
        seed: the seed of the moments at which the corpus stage is killed.
    """

    run: Path
    log: Path
    port: int
    seed: int


@dataclass(frozen=True)
class ScenarioOutcome:
    """The outcome of one scenario.

    Attributes:
        seconds: the seconds from the fault until the work went on as before.
        recovery: what the user had to do for it: nothing, or give the same command again.
        wrong: differences from an undisturbed run; empty if there are none.
        details: further figures.
    """

    seconds: float
    recovery: str = "nothing"
    wrong: list[str] = field(default_factory=list)
    details: str = ""


@dataclass(frozen=True)
class Scenario:
    """A fault, and the work that has to survive it.

    Attributes:
        name: the group of the scenario, a colon, and the fault.
        measure: runs the work through the fault. Raises TimeoutError, subprocess.TimeoutExpired or RuntimeError if the
            work does not go on.
        needs_run: whether it works on a copy of a finished run.
    """

    name: str
    measure: Callable[[Settings], ScenarioOutcome]
    needs_run: bool = True
