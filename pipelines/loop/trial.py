"""The trial of a new policy on a share of the requests: its start, and the decision by thumbs and votes on it."""

import time
from collections.abc import Sequence

from cluster.feedback import Feedback, Ranking, Thumb, open_feedback
from cluster.recipe.loop import Loop
from cluster.run.folder import RunFolder
from cluster.run.trail import Decision, add_decision, open_round, read_trail
from cluster.run.versions import Versions
from pipelines.evaluate.stats import interval_text, proportion, share_difference
from pipelines.loop.rounds import Verdict, Work


def begin_trial(run: RunFolder, settings: Loop, work: Work) -> Decision:
    """Starts the trial of the open round's policy on the run's server, or records why there is none."""
    versions, number = Versions(run, "policy"), open_round(read_trail(run.root))["begin"].round
    new, live = versions.keep_latest(), versions.live()
    refusal = work.try_out(new, settings.canary_share)
    figures = {"new": new.weights, "live": live.weights, "share": settings.canary_share}
    if refusal:
        made = Decision(number, "trial", "skipped", refusal, figures)
    else:
        why = f"the policy {new.weights[:12]} answers {settings.canary_share:.0%} of the requests for `latest`"
        made = Decision(number, "trial", "begun", why, figures)
    add_decision(run.root, made)
    return made


def watch_trial(run: RunFolder, settings: Loop, work: Work) -> Decision | None:
    """Decides on the trial of the open round once it is over; until then keeps the trial set on the server, which may
    have been restarted meanwhile."""
    steps = open_round(read_trail(run.root))
    begun = steps["trial"]
    new, live = str(begun.figures["new"]), str(begun.figures["live"])
    with open_feedback(run.feedback_url) as database:
        judged = database.peoples_judgements()
        thumbs = [one for one in judged.thumbs if one.created >= begun.time]
        votes = votes_between(database, [one for one in judged.votes if one.created >= begun.time], new, live)
    given = sum(one.weights == new for one in thumbs) + len(votes)
    if given < settings.canary_thumbs and time.time() < begun.time + 60 * settings.canary_minutes:
        work.try_out(Versions(run, "policy").find(new), settings.canary_share)
        return None
    verdict = judge_trial(thumbs, votes, new, live)
    work.try_out(Versions(run, "policy").live(), 0.0)
    decision = "passed" if verdict.passed else "rolled back"
    made = Decision(begun.round, "canary", decision, verdict.why, verdict.figures)
    add_decision(run.root, made)
    return made


def votes_between(database: Feedback, votes: Sequence[Ranking], new: str, live: str) -> list[int]:
    """Returns the outcome of each vote of the compare page between two versions: 1 if the new one is better, -1 if the
    live one is, 0 for a tie. Votes that did not show both, or call all answers bad, are left out."""
    found = []
    for vote in votes:
        prompt = database.prompt(vote.prompt_id)
        ranks = {side.weights: vote.ranks.get(str(side.id)) for side in (prompt.completions if prompt else ())}
        one, other = ranks.get(new), ranks.get(live)
        if one is not None and other is not None:
            found.append((other > one) - (one > other))
    return found


def judge_trial(thumbs: Sequence[Thumb], votes: Sequence[int], new: str, live: str) -> Verdict:
    """Decides whether people prefer the live policy's answers to the new one's, beyond chance: by the share of thumbs
    up, or by the share of its votes, ties left out, that the new one won.

    Args:
        thumbs: since the trial began.
        votes: see `votes_between`.
        new: the version of the new policy.
        live: the version of the live policy.
    """
    by_thumbs, by_votes = _judge_thumbs(thumbs, new, live), _judge_votes(votes)
    why = f"{by_thumbs.why}; {by_votes.why}"
    return Verdict(by_thumbs.passed and by_votes.passed, why, {**by_thumbs.figures, **by_votes.figures})


def _judge_votes(votes: Sequence[int]) -> Verdict:
    won, lost = votes.count(1), votes.count(-1)
    figures = {"votes": {"won": won, "lost": lost, "ties": votes.count(0)}}
    said = f"{won} votes for it, {lost} for the live policy, {votes.count(0)} ties"
    if not won + lost:
        return Verdict(True, f"{said}: too few to tell them apart", figures)
    share = proportion(won, won + lost)
    why = f"{said} ({interval_text(share.low, share.high, '.2f', ' of its share')})"
    return Verdict(share.high >= 0.5, why, figures)


def _judge_thumbs(thumbs: Sequence[Thumb], new: str, live: str) -> Verdict:
    counts = {name: [one.good for one in thumbs if one.weights == name] for name in (new, live)}
    (up, n), (live_up, live_n) = ((sum(counts[name]), len(counts[name])) for name in (new, live))
    figures = {"new": {"up": up, "n": n}, "live": {"up": live_up, "n": live_n}}
    said = f"{up} of {n} thumbs up, and {live_up} of {live_n} for the live policy"
    if not n or not live_n:
        return Verdict(True, f"{said}: too few to tell them apart", figures)
    low, high = share_difference(proportion(live_up, live_n), proportion(up, n))
    why = f"{said} ({interval_text(low, high, '+.2f', ' of the difference')})"
    return Verdict(high >= 0, why, figures | {"low": low, "high": high})
