"""One round of the loop, killed with all of its processes at random moments, and the same command given again."""

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.feedback import open_feedback
from cluster.run.folder import RunFolder
from cluster.run.rounds import present_round
from cluster.run.trail import read_trail
from cluster.run.versions import Versions
from infra.bench.rounds.commands import command, label_page
from infra.bench.rounds.person import Person
from infra.bench.rounds.world import Rule
from infra.bench.scenarios.command import end_family

JUDGED = 24
WORDS = ("--rounds", "1", f"loop.min_new={JUDGED}")
LEFT_BEHIND = ("server.json", "lock", "loop.lock", "*.side")


@dataclass(frozen=True)
class RoundEnd:
    """How a round ended: its decisions, the present round, and the weights of reward model, policy and live policy."""

    decisions: tuple[tuple[str, str], ...]
    present: int
    weights: tuple[str, ...]

    @classmethod
    def of(cls, run: RunFolder) -> "RoundEnd":
        """Reads the decisions, the present round and the weights from the run."""
        live = Versions(run, "policy").live().weights
        return cls(
            tuple((one.step, one.decision) for one in read_trail(run.root)),
            present_round(run.root),
            (run.require("reward").weights or "", run.require("policy").weights or "", live),
        )


def prepare(finished: RunFolder, folder: Path, rule: Rule, log: Path) -> RunFolder:
    """Copies a run whose first round is done, and lets a scripted person rank enough prompts for another one."""
    run = RunFolder(folder / "killed")
    if not run.root.exists():
        side = folder / "killed.side"
        shutil.rmtree(side, ignore_errors=True)
        shutil.copytree(finished.root, side, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        with open_feedback(RunFolder(side).feedback_url) as database:
            token = database.add_annotator("kim")
        with label_page(RunFolder(side), log) as url:
            if (ranked := Person(url, token, rule).rank(JUDGED)) < JUDGED:
                raise SystemExit(f"{ranked} prompts were left to rank, and {JUDGED} are needed")
        side.rename(run.root)
    return run


def undisturbed(prepared: RunFolder, log: Path, seconds: float) -> tuple[RoundEnd, float]:
    """Makes the round without a kill; returns how it ended, and the seconds that it took."""
    with _copy(prepared) as run:
        begin = time.monotonic()
        with command(log, "loop", str(run.root), *WORDS) as process:
            if code := process.wait(seconds):
                raise SystemExit(f"the loop ended with {code}: see {log}")
        return RoundEnd.of(run), time.monotonic() - begin


def killed(prepared: RunFolder, log: Path, after: float, seconds: float) -> RoundEnd:
    """Kills the round after so many seconds, and gives the same command again."""
    with _copy(prepared) as run:
        with command(log, "loop", str(run.root), *WORDS) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            end_family(process.pid)
        with command(log, "loop", str(run.root), *WORDS) as process:
            if code := process.wait(seconds):
                raise SystemExit(f"after a kill at {after:.1f} s the loop ended with {code}: see {log}")
        return RoundEnd.of(run)


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """Draws the moments of the kills, in seconds from the start of the command."""
    chance = random.Random(seed)
    return [chance.uniform(1.0, seconds) for _ in range(count)]


@contextlib.contextmanager
def _copy(prepared: RunFolder) -> Iterator[RunFolder]:
    root = prepared.root.with_name("killed-copy")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared.root, root)
    yield RunFolder(root)
    shutil.rmtree(root)
