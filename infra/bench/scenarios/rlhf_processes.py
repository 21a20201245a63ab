"""Kills or stops processes of a live RLHF stage.

For each fault the stage runs anew on a copy of a finished run. Seconds are those from the fault to the next finished
step. A run counts as whole when it ends well, with each step once, the prompts of each step trained once, and engines
that computed with the learner's weights throughout.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil

from infra.bench.scenarios.command import SECONDS, STEPS, RlhfCommand, copied, wait_until, wrong_with
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings

# A fault comes once so many steps are done: there is a checkpoint by then.
AFTER = 2


@dataclass(frozen=True)
class Fault:
    """A signal to processes of a run.

    Attributes:
        name: the name of the fault, for the table.
        title: Ray's title of the process during the work in which the signal hits it; empty for the command itself.
        number: how many such processes are hit.
        sent: the signal.
        after: steps that are done before.
        again: whether the command ends, and is given again.
        settings: further keys of the recipe.
    """

    name: str
    title: str
    number: int = 1
    sent: signal.Signals = signal.SIGKILL
    after: int = AFTER
    again: bool = False
    settings: tuple[str, ...] = ()

    def measure(self, given: Settings) -> ScenarioOutcome:
        """Runs the stage through the fault.

        Raises:
            TimeoutError: something was waited for too long; the message says what.
            subprocess.TimeoutExpired: the command did not end.
        """
        with copied(given.run) as run:
            command = RlhfCommand(run, given.log, self.settings)
            try:
                wait_until(lambda: command.steps() >= self.after, f"step {self.after}", command.process)
                wait_until(
                    lambda: len(command.found(self.title)) >= self.number,
                    f"{self.number} {self.title}",
                    command.process,
                )
                hit = command.found(self.title)[: self.number]
                begin, done = time.monotonic(), command.steps()
                for process in hit:
                    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                        os.kill(process.pid, self.sent)
                if self.again:
                    command.process.wait(SECONDS)
                    command.end()
                    command = RlhfCommand(run, given.log, self.settings)
                wait_until(lambda: command.steps() > done, "the next step", command.process)
                seconds = time.monotonic() - begin
                code = command.process.wait(SECONDS)
            finally:
                command.end()
            wrong = [f"exit code {code}"] if code else wrong_with(run, STEPS)
            return ScenarioOutcome(seconds, "the same command again" if self.again else "nothing", wrong)


FAULTS = (
    Fault("rollout actor killed as it starts", "ray::RolloutActor.__init__", after=0),
    Fault("rollout actor killed as it draws", "ray::RolloutActor.generate"),
    Fault("rollout actor killed as it takes weights", "ray::RolloutActor.pull_weights"),
    Fault("rollout actor stopped as it draws", "ray::RolloutActor.generate", sent=signal.SIGSTOP),
    Fault("all rollout actors killed", "ray::RolloutActor", number=2),
    Fault("reward actor killed", "ray::ModelReward"),
    Fault("learner killed as it learns", "ray::Learner.step"),
    Fault("learner killed as it saves", "ray::Learner.save"),
    Fault("one of two learner workers killed", "ray::Learner.step", settings=("rlhf.fleet.learner_workers=2",)),
    Fault("driver killed", "", again=True),
    Fault("driver told to end", "", sent=signal.SIGTERM, again=True),
)
SCENARIOS = [Scenario(f"rlhf: {fault.name}", fault.measure) for fault in FAULTS]
