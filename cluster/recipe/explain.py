"""Explains in one line what pydantic found wrong with a recipe."""

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.recipe.base import FUNCTION_PATTERN, NAME_PATTERN, SIZE_PATTERN, SMALL_SIZE_PATTERN
from cluster.recipe.known_keys import called_here, elsewhere
from cluster.recipe.renamed import RENAMED

# The form of a text that matches each pattern, in words.
_PATTERNS = {
    FUNCTION_PATTERN: "module:function, such as rewards:brief",
    NAME_PATTERN: "letters, digits, dots, dashes and underscores",
    SIZE_PATTERN: "a number with K, M or B behind it, such as 800K or 2.5M",
    SMALL_SIZE_PATTERN: "a number with K or M behind it, such as 400K",
}
# The sections that inherit the settings of `training`, and would repeat each of its errors.
_HEIRS = ("pretrain", "sft", "reward", "dpo")
# Characters of a wrong value, and keys of a section, that a message shows at most.
_SHOWN_CHARACTERS, _SHOWN_KEYS = 80, 3


@dataclass(frozen=True)
class _Place:
    """The place of an error in a recipe.

    Attributes:
        parts: names of keys and numbers of entries.
        types: the types that the value there may have.
        choice: the number of `parts` in front of a choice between a section and something else; None without one.
    """

    parts: tuple[str | int, ...]
    types: tuple[Any, ...]
    choice: int | None = None

    @property
    def sections(self) -> list[type[BaseModel]]:
        return [own for own in self.types if isinstance(own, type) and issubclass(own, BaseModel)]

    @property
    def name(self) -> str:
        return ".".join(str(part) for part in self.parts) or "recipe"


def explain(error: ValidationError, recipe: type[BaseModel]) -> str:
    """Says what is wrong with a recipe and where, for each error, without repeating what sections inherit."""
    found = [(item, _place(item, recipe)) for item in error.errors()]
    choices = {place.parts[: place.choice] for _, place in found if place.choice is not None}
    said = {(place.parts[1:], str(item["input"])) for item, place in found if place.parts[:1] == ("training",)}
    lines = []
    for item, place in found:
        inherited = place.parts[:1] and place.parts[0] in _HEIRS and (place.parts[1:], str(item["input"])) in said
        if not inherited and not _is_of_the_other_choice(item, place):
            lines.append(_explain(item, place, place.parts in choices, recipe))
    return "; ".join(lines)


def _is_of_the_other_choice(item: Any, place: _Place) -> bool:
    """Tells whether an error belongs to the alternative that the recipe does not mean: the section, or the name."""
    if place.choice != len(place.parts):
        return False
    return isinstance(item["input"], dict) if item["type"] == "literal_error" else item["type"] == "model_type"


def _place(item: Any, recipe: type[BaseModel]) -> _Place:
    place = _Place((), (recipe,))
    for part in item["loc"]:
        if part == "[key]":
            # The name of an entry is wrong, and not its value.
            continue
        inner = tuple(_inner(place.types, part))
        if inner:
            place = _Place((*place.parts, part), inner, place.choice)
        elif chosen := tuple(own for own in place.types if _is_named(own, part)):
            place = _Place(place.parts, chosen, len(place.parts))
        else:
            # An unknown key, which is the last part.
            return _Place((*place.parts, part), place.types, place.choice)
    return place


def _inner(found: Sequence[Any], part: str | int) -> Iterator[Any]:
    """Yields the types that may stand at a key or an entry of any of some types."""
    for own in found:
        if isinstance(own, type) and issubclass(own, BaseModel):
            if part in own.model_fields:
                yield from _members(own.model_fields[str(part)].annotation)
        elif get_origin(own) is list and isinstance(part, int):
            yield from _members(get_args(own)[0])
        elif get_origin(own) is dict:
            yield from _members(get_args(own)[1])


def _members(annotation: Any) -> Iterator[Any]:
    """Yields the types in an annotation's union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _is_named(own: Any, part: str | int) -> bool:
    """Tells whether a part of an error's location is the name that pydantic gives to a type of a choice."""
    return str(part).startswith("literal[") if get_origin(own) is Literal else getattr(own, "__name__", "") == part


def _explain(item: Any, place: _Place, is_choice: bool, recipe: type[BaseModel]) -> str:
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        return _unknown_key(place, recipe)
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if kind in ("missing", "value_error"):
        return f"{place.name}: {message}"
    if kind == "model_type":
        message = f"input should be a section {_keys(place)}"
    elif kind == "list_type":
        entry = _Place(place.parts, tuple(_inner(place.types, 0)))
        example = f", such as [{given}]" if isinstance(given, str | int | float) else ""
        message = f"input should be a list{f' of sections {_keys(entry)}' if entry.sections else example}"
    elif kind == "string_pattern_mismatch":
        message = f"input should be {_PATTERNS[item['ctx']['pattern']]}"
    elif kind == "literal_error" and is_choice:
        whole = _place({"loc": place.parts}, recipe)
        message = f"{message}, or a section {_keys(whole)}"
    if given is None:
        return f"{place.name}: {message}, and nothing is given"
    shown = repr(given)
    return f"{place.name}: {message}, not {shown[:_SHOWN_CHARACTERS]}{'…' if len(shown) > _SHOWN_CHARACTERS else ''}"


def _keys(place: _Place) -> str:
    fields = place.sections[0].model_fields
    first = sorted(fields, key=lambda name: not fields[name].is_required())
    return f"with keys such as {', '.join(first[:_SHOWN_KEYS])}"


def _unknown_key(place: _Place, recipe: type[BaseModel]) -> str:
    if place.name in RENAMED:
        return f"unknown key {place.name!r}: it is the old name of {RENAMED[place.name]!r}, which is set too"
    names = [name for section in place.sections for name in section.model_fields]
    if here := called_here(str(place.parts[-1]), names):
        return f"unknown key {place.name!r}; did you mean {'.'.join(str(part) for part in (*place.parts[:-1], here))}?"
    # A key of this very name in another section is meant sooner than one that is merely like it, in this section.
    if found := elsewhere(place.name, recipe):
        return f"unknown key {place.name!r}; did you mean {' or '.join(found)}?"
    near = difflib.get_close_matches(str(place.parts[-1]), names, n=1, cutoff=0.0)
    nearest = ".".join(str(part) for part in (*place.parts[:-1], *near))
    return f"unknown key {place.name!r}; the nearest known key is {nearest!r}"
