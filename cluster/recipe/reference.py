"""The reference of the recipe as Markdown, generated from the fields: every key with its type, default and meaning."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import TRAINED, Training, inherited

WIDTH = 100
INTRODUCTION = """\
A recipe is one YAML file. It is validated whole before anything starts; an unknown key is an error that names the
nearest known one. Every key has a default but those called required. Any key can be set on the command line by its
dotted name, such as `triptych run my.yaml rlhf.kl.coefficient=0.05`. `triptych recipe` prints this page, and
`triptych recipe rlhf.kl` a part of it."""


def reference(place: str = "") -> str:
    """The reference of the whole recipe, or of the section or key at a dotted place.

    Raises:
        UserError: the recipe has no such place.
    """
    if not place:
        parts = ["# The recipe", "", *(textwrap.fill(text, WIDTH) for text in INTRODUCTION.split("\n\n")), ""]
        return "\n".join([*parts, *_section(Recipe, "", 2)]).rstrip() + "\n"
    model: type[BaseModel] | None = Recipe
    lines: list[str] = []
    for depth, name in enumerate(names := place.split(".")):
        if model is None or name not in model.model_fields:
            where, known = ".".join(names[:depth]) or "it", ", ".join(model.model_fields) if model else "no keys"
            raise UserError(f"the recipe has no key {place}: {where} has {known}")
        lines = _entry(place, model.model_fields[name])
        model = next(_models(model.model_fields[name].annotation), None)
    return "\n".join([*lines, "", *_section(model, place, 2)] if model else lines).rstrip() + "\n"


def _section(model: type[BaseModel], place: str, level: int) -> list[str]:
    """The keys of a section, then its nested sections."""
    shared = inherited(TRAINED[place]) if place in TRAINED else set()
    lines: list[str] = []
    nested: list[str] = []
    if place in TRAINED:
        lines += [
            f"Every key of `training`, with `training`'s value unless it is set here{_own_defaults(place)}; and:",
            "",
        ]
    for name, field in model.model_fields.items():
        if name in shared:
            continue
        dotted = f"{place}.{name}" if place else name
        lines += _entry(dotted, field)
        for inner in _models(field.annotation):
            heading = f"{'#' * level} {dotted}{_each(field.annotation)}"
            about = " ".join((inner.__doc__ or "").split())
            nested += ["", heading, "", *([textwrap.fill(about, WIDTH), ""] if about else [])]
            nested += _section(inner, dotted, min(level + 1, 4))
    return [*lines, *nested]


def _entry(dotted: str, field: FieldInfo) -> list[str]:
    default = "required" if field.is_required() else f"default {_default(field)}"
    text = f"- `{dotted}` ({_kind(field)}; {default}): {field.description}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _own_defaults(place: str) -> str:
    own = [name for name in Training.model_fields if name not in inherited(TRAINED[place])]
    return f" (but for {', '.join(own)}, which have defaults of their own)" if own else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "below"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return json.dumps([one.model_dump(exclude_defaults=True) or one.model_dump(include={"kind"}) for one in value])
    return "unset" if value is None else json.dumps(value)


def _kind(field: FieldInfo) -> str:
    """The type of a key in words, from its JSON schema."""
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
    said = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    return " ".join([name.get(schema.get("type", ""), "any"), ", ".join(said)]).strip()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _models(part)


def _each(annotation: Any) -> str:
    text = str(annotation)
    return " (each entry)" if "list[" in text or "dict[" in text else ""
