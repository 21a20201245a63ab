"""The loop as a service: waits for judgements and for people, and takes the steps of a round."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cluster.errors import UserError
from cluster.feedback.judged import judgement_changes
from cluster.recipe.loop import Loop
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import ROUND_FOLDERS, stages_of
from cluster.run.lock import exclusive, holder_of
from cluster.run.stages import is_made_from_now
from cluster.run.trail import Decision, open_round, read_trail
from cluster.run.versions import Versions
from pipelines.loop.rounds import WAITING, Next, Work, begin_round, next_step, take_step
from pipelines.loop.trial import begin_trial, watch_trial

# Seconds between two looks for judgements in the database, or for an answer.
POLL_SECONDS = 5.0
LOCK = "loop.lock"


def require_finished(recipe: Recipe, run: RunFolder) -> None:
    """Checks that there is a whole round to begin with, made from this recipe; a round in progress needs none.

    Raises:
        UserError: there is none, or RLHF uses no reward model, without which judgements change nothing.
    """
    if not recipe.rlhf.needs_reward_model:
        raise UserError("the loop learns from judgements by a reward model: rlhf.rewards names none of kind model")
    begun = bool(open_round(read_trail(run.root)))
    for stage in stages_of(recipe):
        if begun and stage.folder in ROUND_FOLDERS:
            continue
        if not is_made_from_now(stage, recipe, run):
            raise UserError(
                f"{stage.name} of {run.root} is not done with this recipe: `triptych run` does it, and makes the round "
                "that the loop begins with"
            )


def run_loop(
    settings: Loop,
    run: RunFolder,
    work: Callable[[], AbstractContextManager[Work]],
    rounds: int | None = None,
    poll: float = POLL_SECONDS,
) -> None:
    """Makes rounds until interrupted; Ray is connected while there is work.

    Args:
        settings: the settings of the loop.
        run: the run folder.
        work: opens a context whose value does the work of a round.
        rounds: after so many, ends; None for never.
        poll: seconds between two looks for judgements or an answer.

    Raises:
        UserError, StageError: a step failed; the same command goes on with it.
    """
    with exclusive(run.root / LOCK, "in the loop"):
        said, done = "", 0
        while rounds is None or done < rounds:
            step = next_step(run, settings)
            busy = run.holder()
            if step == "wait" and not busy and (begun := begin_round(run, settings)):
                print(begun, flush=True)
                continue
            if step in ("trial", "canary") and (decision := _tried(settings, run, step, work)):
                print(decision, flush=True)
                continue
            if step in WAITING or busy:
                if (now := waits_for(run, settings)) != said:
                    print(said := now, flush=True)
                time.sleep(poll)
                continue
            with run.lock(), work() as doing:
                while (step := next_step(run, settings)) not in WAITING:
                    if decision := take_step(run, step, doing):
                        print(decision, flush=True)
                        done += decision.step == "end"


def _tried(
    settings: Loop, run: RunFolder, step: Next, work: Callable[[], AbstractContextManager[Work]]
) -> Decision | None:
    with work() as doing:
        return begin_trial(run, settings, doing) if step == "trial" else watch_trial(run, settings, doing)


def waits_for(run: RunFolder, settings: Loop) -> str:
    """Names in one line the next step, or the event that the loop waits for."""
    step = next_step(run, settings)
    if step == "wait":
        total = judgement_changes(run, "preferences").total
        return f"waiting for {settings.min_new} new judgements (loop.min_new): {total} there"
    number = open_round(read_trail(run.root))["begin"].round
    if step == "approve":
        return f"round {number} waits for `triptych loop {run.root} approve` or `refuse`"
    if step == "canary":
        end = open_round(read_trail(run.root))["trial"].time + 60 * settings.canary_minutes
        until = time.strftime("%H:%M", time.localtime(end))
        return f"round {number} is on trial until {until}, or {settings.canary_thumbs} thumbs on its answers"
    holder = run.holder()
    return f"round {number}: next is {step}" + (f"; {run.root} is in use by {holder}" if holder else "")


def describe_loop(run: RunFolder, settings: Loop) -> str:
    """Describes all decisions, the live policy, who runs the loop, and what comes next, a line each."""
    trail, versions = read_trail(run.root), Versions(run, "policy")
    holder = holder_of(run.root / LOCK)
    live = f"live is the policy {versions.live().weights[:12]}" if versions.kept() else "no policy was served yet"
    at_work = f"the loop is {holder}" if holder else f"no loop is running: `triptych loop {run.root}` starts it"
    return "\n".join([*map(str, trail), live, at_work, waits_for(run, settings)])


def without_early_promotion(recipe: Recipe) -> Recipe:
    """Returns the recipe with promotions during RLHF turned off: the loop promotes only a policy that has passed."""
    return recipe.model_copy(update={"rlhf": recipe.rlhf.model_copy(update={"promote_every": None})})
