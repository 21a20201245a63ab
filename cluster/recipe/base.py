"""What the sections of a recipe share: strict fields, no unknown keys, common types, and which fields name files."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Precision = Literal["bfloat16", "float32"]
# vLLM refuses more.
Temperature = Annotated[float, Field(gt=0, le=2)]


class Place(Enum):
    """Marks a field, in its annotation, that names a place or a list of places; the value says what is there."""

    FILES = "files to read: a path, a URI or a glob"
    STAGE = "the folder of a finished stage, which its manifest stands for"
    MODEL = "a model on this machine, or the name of one on the Hub"
    SERVED = "a folder that need not be there before it is served"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


FunctionName = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Probe = Literal["longer", "thanks", "refusal", "repetition", "empty"]


class Call(Section):
    """A Python function that a recipe names, and its keyword arguments."""

    function: FunctionName = Field(description="module:function, in a folder of PYTHONPATH")
    arguments: dict[str, Any] = Field({}, description="keyword arguments besides those that the stage gives")


class Lora(Section):
    """Low-rank adapters beside every linear layer, trained in its place (Hu et al. 2022)."""

    rank: Positive = Field(16, description="of the two matrices whose product is added")
    alpha: Positive = Field(32, description="the adapter's output is scaled by alpha / rank")


def with_places(value: Any, change: Callable[[Place, str], str]) -> Any:
    """A section, or a list or table of sections, in which every place is what `change` makes of it."""
    if isinstance(value, list):
        return [with_places(one, change) for one in value]
    if isinstance(value, dict):
        return {name: with_places(one, change) for name, one in value.items()}
    if not isinstance(value, BaseModel):
        return value
    changed: dict[str, Any] = {}
    for name, field in type(value).model_fields.items():
        given = getattr(value, name)
        place = next((mark for mark in field.metadata if isinstance(mark, Place)), None)
        if place is None:
            changed[name] = with_places(given, change)
        elif isinstance(given, list):
            changed[name] = [change(place, one) for one in given]
        elif given is not None:
            changed[name] = change(place, given)
    return value.model_copy(update=changed)


def files_of(section: BaseModel) -> list[str]:
    """The files that decide what a stage makes, as paths, URIs and globs, in the order of the fields."""
    found: list[str] = []

    def note(place: Place, name: str) -> str:
        if place is Place.STAGE:
            found.append(str(Path(name) / "manifest.json"))
        elif place is Place.FILES or (place is Place.MODEL and Path(name).exists()):
            found.append(name)
        return name

    with_places(section, note)
    return found


def functions_of(section: Any) -> list[str]:
    """The Python functions that a section names, as module:function, in the order of the fields."""
    if isinstance(section, dict):
        return functions_of(list(section.values()))
    if isinstance(section, list):
        return [name for one in section for name in functions_of(one)]
    if not isinstance(section, BaseModel):
        return []
    named = getattr(section, "function", None)
    inner = [getattr(section, name) for name in type(section).model_fields]
    return ([named] if named else []) + functions_of(inner)


def needs_its_origin(source: Any) -> Any:
    """A source of kind files names a path, one of kind function a function, and neither the other's.

    Raises:
        ValueError: it does not.
    """
    for kind, field in (("files", "path"), ("function", "function")):
        if (source.kind == kind) != (getattr(source, field) is not None):
            raise ValueError(f"a source of kind {kind} needs a {field}, and no other kind takes one")
    if source.arguments and source.kind != "function":
        raise ValueError("arguments are for sources of kind function")
    return source
