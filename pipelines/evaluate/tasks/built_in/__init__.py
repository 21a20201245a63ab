"""Evaluation tasks with nothing to fetch, useful for models of a few million parameters too.

Each module makes tasks of one kind; `BUILT_IN` has them by name.
"""

from collections.abc import Callable

from pipelines.evaluate.tasks.built_in.cloze import cloze
from pipelines.evaluate.tasks.built_in.grammar import minimal_pairs
from pipelines.evaluate.tasks.built_in.instructions import instructions
from pipelines.evaluate.tasks.built_in.texts import bits_per_byte
from pipelines.evaluate.tasks.built_in.twins import refusal, sycophancy, truth
from pipelines.evaluate.tasks.items import EvaluationTask

BUILT_IN: dict[str, Callable[[], EvaluationTask]] = {
    "bits_per_byte": bits_per_byte,
    "minimal_pairs": minimal_pairs,
    "cloze": cloze,
    "instructions": instructions,
    "refusal": refusal,
    "sycophancy": sycophancy,
    "truth": truth,
}
