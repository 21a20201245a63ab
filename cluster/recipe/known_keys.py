"""Finds the keys of the recipe that an unknown name may mean."""

import difflib
from collections.abc import Collection, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from cluster.recipe.training import TRAINING_SECTIONS, inherited_fields

# The least likeness (difflib's ratio) of a wrong name and the key that is named for it.
_LIKENESS = 0.7
# Names of other libraries that are little like the recipe's name for the same.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "batch": "batch_rows",
    "batch_size": "batch_rows",
    "bs": "batch_rows",
    "micro_batch_size": "micro_batch_rows",
    "num_train_epochs": "epochs",
    "width": "hidden",
    "dim": "hidden",
    "d_model": "hidden",
    "hidden_size": "hidden",
    "depth": "layers",
    "n_layers": "layers",
    "num_hidden_layers": "layers",
    "n_heads": "heads",
    "num_attention_heads": "heads",
    "vocab_size": "vocabulary",
    "max_length": "context",
    "seq_len": "context",
}
# The most keys of one name in several sections that a message lists.
_SHOWN = 3


def elsewhere(name: str, recipe: type[BaseModel]) -> list[str]:
    """Finds the keys that a dotted name may mean which stands in the wrong section.

    Args:
        name: a name that is not in the recipe, such as `rlhf.max_kl`.
        recipe: the type of the recipe.

    Returns:
        the dotted names of at most three keys that are called like its last part, or as the recipe calls what other
        libraries call so, without the numbers and names of entries: of those in its own first section if there are
        some, and else of those in sections that every recipe has; empty if no key is called so.
    """
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    keys = dict(_keys(recipe))
    names = {key.rpartition(".")[2] for key in keys}
    last = last if last in names else called_here(last, names) or last
    found = {key: always for key, always in keys.items() if key.rpartition(".")[2] == last}
    near = [key for key in found if key.partition(".")[0] == first]
    return (near or [key for key, always in found.items() if always] or list(found))[:_SHOWN]


def called_here(name: str, known: Collection[str]) -> str | None:
    """Returns the name of a section's key that other libraries call by a name, such as learning_rate for lr.

    Args:
        name: a name that is no key of the section.
        known: the names of its keys.
    """
    found = _OTHER_NAMES.get(name)
    return found if found in known else None


def suggestion(name: str, recipe: type[BaseModel]) -> str:
    """Says which key an unknown dotted name may mean, to follow a complaint; empty if no key is like it."""
    name = name.lower()
    if found := elsewhere(name, recipe):
        return f"did you mean {' or '.join(found)}?"
    keys = [key for key, _ in _keys(recipe)]
    section, dot, last = name.rpartition(".")
    if dot and (near := difflib.get_close_matches(name, keys, n=1, cutoff=_LIKENESS)):
        return f"did you mean {near[0]}?"
    names = sorted({key.rpartition(".")[2] for key in keys})
    if near := difflib.get_close_matches(last, names, n=1, cutoff=_LIKENESS):
        return f"did you mean {' or '.join(elsewhere(f'{section}.{near[0]}', recipe))}?"
    return ""


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the sections that the value of a key may be, or have in its entries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from sections_in(part)


def _keys(section: type[BaseModel], place: str = "", always: bool = True) -> Iterator[tuple[str, bool]]:
    """Yields the dotted name of every key, and whether every recipe has its section; what a section inherits from
    `training` is listed there alone."""
    shared = inherited_fields(TRAINING_SECTIONS[place]) if place in TRAINING_SECTIONS else set()
    for name, field in section.model_fields.items():
        if name not in shared:
            dotted = f"{place}.{name}" if place else name
            yield dotted, always
            for inner in sections_in(field.annotation):
                yield from _keys(inner, dotted, always and field.default is not None)
