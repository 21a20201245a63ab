"""The quality of people's judgements, as the agreement page and the command line show it."""

from dataclasses import asdict
from typing import Any

from cluster.feedback import COMPARED, GOLD, Feedback, is_person
from cluster.feedback.agreement import agreement, reliability


def agreement_report(database: Feedback, annotator: str | None = None) -> dict[str, Any]:
    """Returns how far people agree with each other, with gold items and with themselves.

    Args:
        database: their judgements.
        annotator: whose figures to return, beside those of all people together; None for everybody's.
    """

    def shown(name: str) -> bool:
        return annotator in (None, name)

    excluded = database.excluded()
    judgements = database.judgements()
    # The votes of the compare page are another task.
    ranked = [row for row in judgements if not row.prompt_id.startswith(COMPARED)]
    people = [row for row in ranked if is_person(row.annotator) and row.annotator not in excluded]
    counts = {
        "rankings": sum(bool(row.ranks) for row in people),
        "all_bad": sum(row.all_bad for row in people),
        "skipped": sum(row.skipped is not None for row in people),
    }
    # Those who are excluded too: their reliability is the reason.
    persons = [row for row in judgements if is_person(row.annotator) or row.annotator == GOLD]
    return {
        "counts": counts,
        "agreement": [asdict(row) for row in agreement(people) if row.annotator is None or shown(row.annotator)],
        "reliability": {
            row.annotator: asdict(row) for row in reliability(persons, database.repeats()) if shown(row.annotator)
        },
        "excluded": [name for name in excluded if shown(name)],
    }
