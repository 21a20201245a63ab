"""The state machine of the loop: the next step of a round, and the record of each finished step.

The state is nothing but files: the decisions of the audit trail, the numbers of rounds in the stages' manifests, the
live version, and the answer of a person. So a process that is killed anywhere is followed by one that goes on with the
first step that is not done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from cluster.feedback.judged import JudgementChanges, judgement_changes
from cluster.recipe.loop import Loop
from cluster.run.folder import RunFolder
from cluster.run.rounds import present_round, restore_round, round_in_the_making
from cluster.run.trail import AGAINST, Decision, Step, add_decision, forget_answer, open_round, read_answer, read_trail
from cluster.run.versions import Version, Versions

Next = Literal[
    "wait",
    "collect",
    "reward",
    "gates",
    "rlhf",
    "evaluate",
    "compare",
    "approve",
    "trial",
    "canary",
    "promote",
    "set aside",
]
ORDER: tuple[Next, ...] = tuple(step for step in get_args(Next) if step not in ("wait", "set aside"))
# Steps that wait for people or need no Ray; all others are work.
WAITING: tuple[Next, ...] = ("wait", "approve", "trial", "canary")
# The subfolder by whose manifest a stage of a round is known to be done.
STAGE_FOLDERS: Mapping[Next, str] = {
    "collect": "preferences",
    "reward": "reward",
    "rlhf": "policy",
    "evaluate": "report",
}


@dataclass(frozen=True)
class Verdict:
    """The decision whether a round continues, with its reason.

    Attributes:
        passed: it may.
        why: the reason in a sentence with its figures.
        figures: the figures as JSON.
    """

    passed: bool
    why: str
    figures: Mapping[str, Any]


class Work(Protocol):
    """The operations on a round that the state machine calls."""

    def run_stage(self, name: str) -> None:
        """Runs or resumes a stage; one that is done is skipped."""

    def gates(self, before: int) -> Verdict:
        """Judges the reward model of the present round against the one of another round, which is kept."""

    def compare(self, live: Version) -> Verdict:
        """Compares the policy of the present round with the one that is live."""

    def try_out(self, version: Version, share: float) -> str:
        """Makes the run's server answer a share of the requests with a policy, if it does not yet; a share of 0 ends
        that.

        Returns:
            the reason why it does not; empty if it does.
        """

    def promote(self, weights: str) -> dict[str, Any]:
        """Makes the run's server serve a kept policy, or the next server start with it; returns figures."""


def next_step(run: RunFolder, settings: Loop) -> Next:
    """Finds the next step of the open round; `wait` if no round is open."""
    open_steps = open_round(read_trail(run.root))
    if not open_steps:
        return "wait"
    number = open_steps["begin"].round
    answer = read_answer(run.root, number)
    if any(one.decision in AGAINST for one in open_steps.values()) or (answer and not answer.approved):
        return "set aside"
    for step in ORDER:
        if step == "approve" and (settings.approve == "nobody" or answer):
            continue
        if step in ("trial", "canary") and not settings.canary_share:
            continue
        if step == "canary" and open_steps["trial"].decision == "skipped":
            continue
        if step in STAGE_FOLDERS:
            if not _is_made(run, STAGE_FOLDERS[step], number):
                return step
        elif step not in open_steps:
            return step
    return "promote"


def begin_round(run: RunFolder, settings: Loop) -> Decision | None:
    """Begins a round if enough judgements are new.

    Raises:
        UserError: another command works on the run.
    """
    changes = judgement_changes(run, "preferences")
    if changes.total < settings.min_new:
        return None
    with run.lock():
        return _begin(run, changes)


def _begin(run: RunFolder, changes: JudgementChanges) -> Decision:
    forget_answer(run.root)
    versions = Versions(run, "policy")
    if not versions.kept():
        # The new policy is compared with the version that a server would start with.
        versions.start()
    found = {
        "before": present_round(run.root),
        "live": versions.live().weights,
        "new": dict(changes.new),
        "gone": changes.gone,
    }
    return _add(run, round_in_the_making(run.root, "preferences"), "begin", "begun", changes.sentence(), found)


def take_step(run: RunFolder, step: Next, work: Work) -> Decision | None:
    """Takes the next step of the open round, which must not wait for people; the run must be locked.

    Returns:
        the decision that was written, or None for a stage, whose manifest says that it is done.
    """
    begun = open_round(read_trail(run.root))["begin"]
    number, before = begun.round, int(begun.figures["before"])
    if step in STAGE_FOLDERS:
        folder = STAGE_FOLDERS[step]
        # A commit that a kill cut short: judgements that came in since are those of the next round.
        run.recover(folder)
        if _is_made(run, folder, number):
            return None
        work.run_stage(step)
        if not _is_made(run, folder, number):
            why = f"another command made {folder} of another round meanwhile"
            return _add(run, number, "end", "given up", why)
        return None
    if step == "gates":
        verdict = work.gates(before)
        return _add(run, number, "gates", "passed" if verdict.passed else "stopped", verdict.why, verdict.figures)
    if step == "compare":
        verdict = work.compare(Versions(run, "policy").live())
        return _add(run, number, "compare", "passed" if verdict.passed else "stopped", verdict.why, verdict.figures)
    if step == "set aside":
        return _set_aside(run, number, before)
    return _promote(run, number, work)


def _promote(run: RunFolder, number: int, work: Work) -> Decision:
    versions = Versions(run, "policy")
    new = versions.keep_latest()
    done = {} if versions.live().weights == new.weights else work.promote(new.weights)
    answer = read_answer(run.root, number)
    who = f", approved by {answer.by}" if answer else ""
    return _add(run, number, "end", "promoted", f"the policy {new.weights[:12]} is live{who}", done)


def _set_aside(run: RunFolder, number: int, before: int) -> Decision:
    """Brings back the round before, and keeps the artifacts of this one."""
    steps, answer = open_round(read_trail(run.root)), read_answer(run.root, number)
    stopped = next((name for name, one in steps.items() if one.decision in AGAINST), None)
    if present_round(run.root) == number:
        restore_round(run.root, before)
    live = Versions(run, "policy").live().weights
    reason = f"its step {stopped} stopped it" if stopped else f"refused by {answer.by if answer else 'nobody'}"
    why = f"{reason}; the policy {live[:12]} stays live, and round {before} is the present one"
    return _add(run, number, "end", "kept", why)


def _is_made(run: RunFolder, folder: str, number: int) -> bool:
    manifest = run.manifest(folder)
    return manifest is not None and manifest.round == number


def _add(run: RunFolder, number: int, step: Step, decision: str, why: str, figures: Mapping[str, Any] = {}) -> Decision:
    made = Decision(number, step, decision, why, figures)
    add_decision(run.root, made)
    return made
