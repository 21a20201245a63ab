"""The quality of people's judgements, as the agreement page and the command line show it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cluster.feedback import COMPARED, GOLD, Feedback, Ranking, is_person
from cluster.feedback.agreement import agreement, pairs_alike, reliability

# The most disputed prompts that are shown, and the characters of each prompt.
DISPUTED, MAX_ASKED = 10, 200


def agreement_report(database: Feedback, annotator: str | None = None) -> dict[str, Any]:
    """Returns the agreement of people with each other, with gold items and with themselves.

    Prompts that `collect.select` chose are left out of it, and their rankings counted: it is that on prompts which came
    at random.

    Args:
        database: their judgements.
        annotator: the annotator whose figures to return, beside those of all people together; None for the figures of
            every annotator.
    """

    def shown(name: str) -> bool:
        return annotator in (None, name)

    excluded = database.excluded()
    judgements = database.judgements()
    # The votes of the compare page are another task.
    ranked = [row for row in judgements if not row.prompt_id.startswith(COMPARED)]
    people = [row for row in ranked if is_person(row.annotator) and row.annotator not in excluded]
    # Prompts that were chosen because reward models disagree on them are harder than others.
    chosen = database.chosen_prompts()
    unbiased = [row for row in people if row.prompt_id not in chosen]
    counts = {
        "rankings": sum(bool(row.ranks) for row in people),
        "all_bad": sum(row.all_bad for row in people),
        "skipped": sum(row.skipped is not None for row in people),
        "chosen": sum(bool(row.ranks) for row in people) - sum(bool(row.ranks) for row in unbiased),
    }
    # With the excluded people: low reliability is a reason to exclude one.
    persons = [row for row in judgements if is_person(row.annotator) or row.annotator == GOLD]
    return {
        "counts": counts,
        "agreement": [asdict(row) for row in agreement(unbiased) if row.annotator is None or shown(row.annotator)],
        "reliability": {
            row.annotator: asdict(row)
            for row in reliability(persons, [row for row in database.repeats() if row.prompt_id not in chosen])
            if shown(row.annotator)
        },
        "excluded": [name for name in excluded if shown(name)],
        "disputed": disputed_prompts(database, people),
    }


def disputed_prompts(database: Feedback, rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Returns the prompts on which people agree least, the worst first, each with the share of pairs that they order
    alike and the number of people.

    Args:
        database: their prompts.
        rankings: judgements of people.
    """
    by_prompt: dict[str, dict[str, Mapping[str, int]]] = defaultdict(dict)
    for row in rankings:
        if row.ranks:
            by_prompt[row.prompt_id][row.annotator] = row.ranks
    shares = {name: pairs_alike(ranks) for name, ranks in by_prompt.items() if len(ranks) > 1}
    worst = sorted((share, name) for name, share in shares.items() if share is not None and share < 1)[:DISPUTED]
    found = []
    for share, name in worst:
        prompt = database.prompt(name)
        asked = prompt.messages[-1]["content"][:MAX_ASKED] if prompt and prompt.messages else ""
        found.append({"prompt": name, "asked": asked, "alike": share, "people": len(by_prompt[name])})
    return found
