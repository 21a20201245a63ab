"""The gates of a round: whether its judgements and its reward model can be trusted to train the next policy.

Judgements may be wrong on purpose, or by mistake, such as reversed labels. A reward model that was trained on them
agrees with those of them that were held out. So it is also compared on the rankings that the round before held out,
which hold no new judgement, and the new judgements are compared with the reward model of the round before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from actors.model.reward_head import member_folders
from cluster.recipe.loop import Gate
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.runtime.plan import make_plan
from pipelines.data.preferences.rankings import read_rankings
from pipelines.evaluate.reward_probes import PROBES, Row
from pipelines.evaluate.reward_trust import pair_accuracy, prompt_accuracies
from pipelines.evaluate.stats import interval_text, paired_change
from pipelines.loop.rounds import Verdict
from pipelines.reward_model import reward_scorer, scores_of_answers

ScoreRows = Callable[[Sequence[Row]], list[list[float]]]


def run_gates(recipe: Recipe, run: RunFolder, before: Path) -> Verdict:
    """Judges the reward model of the present round.

    Args:
        recipe: decides which gates may fail.
        run: the run folder, with the preferences and the reward model of the round.
        before: the folder of the round before, with its own.
    """
    rankings = {folder: read_rankings(folder / "preferences" / "rankings.parquet") for folder in (before, run.root)}
    known = {_identity(row) for row in rankings[before]}
    new = _as_ranked(row for row in rankings[run.root] if _identity(row) not in known)
    held_out = _as_ranked(row for row in rankings[before] if row["split"] == "held_out")
    metrics = run.require("reward").metrics
    with reward_scorer(recipe, make_plan(recipe)) as scores_by:

        def scored_by(folder: Path) -> ScoreRows:
            return partial(scores_of_answers, partial(scores_by, member_folders(folder / "reward")))

        found: dict[Gate, Verdict] = {
            "agreement": agreement_gate(new, scored_by(before)),
            "chance": chance_gate(metrics["pair_accuracy"]),
            "accuracy": accuracy_gate(held_out, scored_by(before), scored_by(run.root)),
            "probes": probes_gate(metrics["trust"]["probes"], recipe.rlhf.accept_probes),
        }
    return summarize(found, recipe.loop.accept_gates)


def summarize(found: Mapping[Gate, Verdict], accepted: Sequence[Gate]) -> Verdict:
    """Makes one verdict of those of all gates, the failing ones first; those that are accepted stop nothing."""
    failing = [name for name, one in found.items() if not one.passed and name not in accepted]
    order = sorted(found, key=lambda name: found[name].passed)
    words = [
        f"{name}{'' if found[name].passed else ' FAILS'}{' (accepted)' * (name in accepted)}: {found[name].why}"
        for name in order
    ]
    figures: dict[str, Any] = {name: {"passed": one.passed, **one.figures} for name, one in found.items()}
    return Verdict(not failing, "; ".join(words), figures)


def agreement_gate(new: Sequence[Row], scored: ScoreRows) -> Verdict:
    """Fails if the reward model of the round before orders the new pairs worse than a coin.

    Args:
        new: the rows of rankings.parquet that the round before has not.
        scored: scores answers by that reward model.
    """
    if not new:
        return Verdict(True, "no new pair to compare with the round before", {"n": 0})
    scores = scored(new)
    whole = pair_accuracy(new, scores)
    by_annotator = {
        name: pair_accuracy(
            *zip(*((row, own) for row, own in zip(new, scores, strict=True) if row["annotator"] == name), strict=True)
        )
        for name in sorted({row["annotator"] for row in new})
    }
    against = [name for name, share in by_annotator.items() if share["high"] < 0.5]
    why = f"the reward model of the round before orders {_share(whole)} new pairs alike"
    if against:
        why += f"; most against it is {min(against, key=lambda name: by_annotator[name]['value'])}"
        why += " (`triptych annotator exclude` leaves somebody's judgements out)"
    return Verdict(whole["high"] >= 0.5, why, {**whole, "by_annotator": by_annotator})


def chance_gate(accuracy: Mapping[str, Any]) -> Verdict:
    """Fails unless the new reward model orders held-out pairs better than a coin.

    Args:
        accuracy: the figure `pair_accuracy` of the reward stage.
    """
    return Verdict(accuracy["low"] > 0.5, f"of its held-out pairs it orders {_share(accuracy)} rightly", dict(accuracy))


def accuracy_gate(held_out: Sequence[Row], before: ScoreRows, after: ScoreRows) -> Verdict:
    """Fails if the new reward model orders the held-out pairs of the round before worse than that round's own, beyond
    chance.

    Args:
        held_out: rows of rankings.parquet of the round before.
        before: scores answers by the reward model of the round before.
        after: scores answers by the new one.
    """
    if not held_out:
        return Verdict(True, "the round before held out no pair", {"n": 0})
    one, other = (prompt_accuracies(held_out, scored(held_out)) for scored in (before, after))
    change = paired_change(list(one.values()), [other[name] for name in one])
    interval = "one prompt is too few for an interval"
    if change.low is not None and change.high is not None:
        interval = interval_text(change.low, change.high, "+.3f", " of the change")
    why = (
        f"on the {change.n} prompts that the round before held out, {change.before:.3f} before and {change.after:.3f} "
        f"now ({interval})"
    )
    return Verdict(change.high is None or change.high >= 0, why, asdict(change))


def probes_gate(probes: Mapping[str, Row], accepted: Sequence[str]) -> Verdict:
    """Fails if the new reward model fails a probe that `rlhf.accept_probes` does not name.

    Args:
        probes: the value of `run_probes`.
        accepted: the probes that may fail.
    """
    failing = [name for name, probe in probes.items() if probe["fails"] and name not in accepted]
    shares = {name: probe["value"] for name, probe in probes.items() if probe["n"]}
    if not failing:
        return Verdict(True, "none fails", shares)
    words = (
        f"{name}, it {PROBES[name].finding} in {shares[name]:.0%} of {probes[name]['n']} cases" for name in failing
    )
    return Verdict(False, "; ".join(words), shares)


def _as_ranked(rows: Any) -> list[Row]:
    """Keeps the rows that order a pair, by the ranks that were given, whatever the grades without noise."""
    return [{**row, "grades": None} for row in rows if len(set(row["ranks"])) > 1]


def _identity(row: Row) -> str:
    return json.dumps([row["annotator"], row.get("source"), row["prompt_token_ids"], row["texts"], row["ranks"]])


def _share(share: Mapping[str, Any]) -> str:
    return f"{share['value']:.0%} of {share['n']} ({share['low']:.0%} to {share['high']:.0%})"
