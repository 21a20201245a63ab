"""Generates the reference of the recipe, every key with its type, default and meaning, as Markdown."""

import json
import textwrap
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from cluster.errors import UserError
from cluster.recipe.known_keys import sections_in, suggestion
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import TRAINING_SECTIONS, Training, inherited_fields

WIDTH = 100
INTRODUCTION = """\
A recipe is one YAML file. It is validated whole before anything starts; an unknown key is an error that names the known
one that may be meant. Every key has a default except those marked required; where the default is unset, the description
says what that means. A key of type section holds the keys listed under its heading below, and may be left out. Any key
can be set on the command line by its dotted name, such as `triptych run my.yaml rlhf.kl.coefficient=0.05`. `triptych
recipe` prints this page, and `triptych recipe rlhf.kl` a part of it.

Words used below: a row is what training takes one at a time, a share is a number from 0 to 1, held out means not
trained on, and an answer is the text that a model generates for a prompt. Text is measured in the tokenizer's
tokens."""


def reference(place: str = "") -> str:
    """Describes the whole recipe, or one section or key.

    Args:
        place: the dotted name of a section or key, such as `rlhf.kl`; empty for the whole recipe.

    Returns:
        Markdown.

    Raises:
        UserError: the recipe has no such key; the message names the one that may be meant, or those there are.
    """
    if not place:
        parts = ["# The recipe", ""]
        for paragraph in INTRODUCTION.split("\n\n"):
            parts += [_filled(paragraph), ""]
        return "\n".join([*parts, *_section(Recipe, "", 2)]).rstrip() + "\n"
    model: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    for depth, name in enumerate(names := place.split(".")):
        if model is None or name not in model.model_fields:
            where = ".".join(names[:depth]) or "it"
            if model is None:
                raise UserError(f"the recipe has no key {place}: {where} has no keys inside")
            meant = suggestion(place, Recipe) or f"{where} has {', '.join(model.model_fields)}"
            raise UserError(f"the recipe has no key {place}: {meant}")
        field = model.model_fields[name]
        model = next(sections_in(field.annotation), None)
    lines = _entry(place, field) if field else []
    return "\n".join([*lines, "", *_section(model, place, 2)] if model else lines).rstrip() + "\n"


def _section(model: type[BaseModel], place: str, level: int) -> list[str]:
    """Describes the keys of a section, then its nested sections, whose headings have `level` hashes."""
    shared = inherited_fields(TRAINING_SECTIONS[place]) if place in TRAINING_SECTIONS else set()
    lines: list[str] = []
    nested: list[str] = []
    if place in TRAINING_SECTIONS:
        lines += [_filled(_inheritance(place)), ""]
    for name, field in model.model_fields.items():
        if name in shared:
            continue
        dotted = f"{place}.{name}" if place else name
        lines += _entry(dotted, field)
        for inner in sections_in(field.annotation):
            heading = f"{'#' * level} {dotted}{_each(field.annotation)}"
            about = " ".join((inner.__doc__ or "").split())
            nested += ["", heading, "", *([_filled(about), ""] if about else [])]
            nested += _section(inner, dotted, min(level + 1, 4))
    return [*lines, *nested]


def _entry(dotted: str, field: FieldInfo) -> list[str]:
    default = "required" if field.is_required() else f"default {_default(field)}"
    text = f"- `{dotted}` ({_kind(field)}; {default}): {field.description}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _inheritance(place: str) -> str:
    own = [name for name in Training.model_fields if name not in inherited_fields(TRAINING_SECTIONS[place])]
    but = f", except for {', '.join(own)}, whose defaults differ here" if own else ""
    return f"Takes every key of `training`, with the value there unless it is set here{but}. In addition:"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "below"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return json.dumps([one.model_dump(exclude_defaults=True) or one.model_dump(include={"kind"}) for one in value])
    return "unset" if value is None else json.dumps(value)


def _kind(field: FieldInfo) -> str:
    """Describes the type and bounds of a key in words, from its JSON schema."""
    schema = TypeAdapter(field.rebuild_annotation()).json_schema()
    return _words(schema, schema.get("$defs", {}))


def _words(schema: dict[str, Any], known: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _words(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        kinds = [_words(one, known) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {}), known)}"
    if schema.get("type") == "object":
        return "section" if "properties" in schema else "mapping"
    name = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    return " ".join([name.get(schema.get("type", ""), "any"), ", ".join(limits)]).strip()


def _each(annotation: Any) -> str:
    text = str(annotation)
    return " (each entry)" if "list[" in text or "dict[" in text else ""
