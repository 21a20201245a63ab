"""The types that the sections of a recipe share: strict sections, bounded numbers, function names, and paths."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from cluster.recipe.functions.signature import CallForm

Share = Annotated[float, Field(ge=0, le=1)]
TrackerName = Literal["wandb", "mlflow", "trackio"]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Precision = Literal["bfloat16", "float32"]
# The parameters that weight decay applies to.
Decayed = Literal["matrices", "layers", "all"]
# Keys that `training` and `rlhf` share; the sections give the defaults.
MicroBatchRows = Annotated[
    Positive, Field(description="rows of a forward pass: less memory with fewer, the same result")
]
CheckpointEvery = Annotated[
    Positive, Field(description="steps between checkpoints, which is the most work that an interruption loses")
]
RecomputeActivations = Annotated[
    bool, Field(description="recompute activations in the backward pass: less memory for a third more computing")
]
# vLLM refuses higher temperatures.
MAX_TEMPERATURE = 2.0
Temperature = Annotated[float, Field(gt=0, le=MAX_TEMPERATURE)]
# `cluster.recipe.explain` words the requirement of each pattern.
FUNCTION_PATTERN = r"^[\w.]+:\w+$"
NAME_PATTERN = r"^[\w.-]+$"
SIZE_PATTERN = r"^\d+(\.\d+)?[KMB]$"
SMALL_SIZE_PATTERN = r"^\d+(\.\d+)?[KM]$"
FunctionName = Annotated[str, Field(pattern=FUNCTION_PATTERN)]
# The chat templates that are built in (actors/model/chat/recipe_template.py).
TEMPLATES = ("triptych", "chatml")
# The probes of pipelines.evaluate.reward_probes, by name.
Probe = Literal["longer", "thanks", "refusal", "repetition", "empty", "unrelated", "common", "flipped"]
# The hacks of pipelines.evaluate.gaming.hacks, by name.
Hack = Literal["empty", "echo", "repeated", "long", "keywords", "several"]


class PathKind(Enum):
    """Annotation of a field that holds a path or a list of paths: the kind of file or folder there."""

    FILES = "files to read: a path, a URI or a glob"
    STAGE = "the folder of a finished stage, which its manifest identifies"
    MODEL = "a model on this machine, or the name of one on the Hugging Face Hub"
    TEMPLATE = "a file with a chat template, or the name of one that is built in"
    SERVED = "a folder that need not exist before it is served"


class Section(BaseModel):
    """A section of the recipe: unknown keys, values of another type, infinity and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Kinds whose value may be a name instead of a path.
NAMED = (PathKind.MODEL, PathKind.TEMPLATE)


def is_name(kind: PathKind, value: str) -> bool:
    """Tells whether a value names a built-in template, or a model that does not lie on this machine."""
    return value in TEMPLATES if kind is PathKind.TEMPLATE else not Path(value).exists()


class Call(Section):
    """A Python function and its keyword arguments."""

    function: FunctionName = Field(description="module:function, in a folder of PYTHONPATH or an installed package")
    arguments: dict[str, Any] = Field({}, description="keyword arguments, in addition to those that the stage passes")


class Lora(Section):
    """Low-rank adapters beside every linear layer, trained in place of its weights (Hu et al. 2022); in a mixture of
    experts beside the attention's alone."""

    rank: Positive = Field(16, description="rank of the two matrices whose product is added to a layer's weight")
    alpha: Positive = Field(32, description="scale of the adapter's output, which is multiplied by alpha / rank")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names of the linear layers that get adapters, such as q_proj; unset: all but the output head"
    )
    rank_stabilized: bool = Field(
        False, description="multiply by alpha / √rank instead, for high ranks (Kalajdzievski 2023)"
    )


class TrainingLora(Lora):
    """Low-rank adapters with two settings that `rlhf.lora` lacks, because RLHF compares a model with itself and sends
    the adapters to its engines."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout of the adapters' inputs")
    dora: bool = Field(
        False, description="train the length of each weight's rows apart from their direction (DoRA, Liu et al. 2024)"
    )


def map_paths(value: Any, change: Callable[[PathKind, str], str]) -> Any:
    """Copies a section, or a list or dictionary of sections, with `change` applied to every path in it."""
    if isinstance(value, list):
        return [map_paths(item, change) for item in value]
    if isinstance(value, dict):
        return {name: map_paths(item, change) for name, item in value.items()}
    if not isinstance(value, BaseModel):
        return value
    changed: dict[str, Any] = {}
    for name, field in type(value).model_fields.items():
        current = getattr(value, name)
        kind = next((mark for mark in field.metadata if isinstance(mark, PathKind)), None)
        if kind is None:
            changed[name] = map_paths(current, change)
        elif isinstance(current, list):
            changed[name] = [change(kind, path) for path in current]
        elif current is not None:
            changed[name] = change(kind, current)
    return value.model_copy(update=changed)


def input_files(section: BaseModel) -> list[str]:
    """Lists the files that decide the output of a stage, as paths, URIs and globs, in the order of the section's
    fields."""
    paths: list[str] = []

    def collect(kind: PathKind, path: str) -> str:
        if kind is PathKind.STAGE:
            paths.append(str(Path(path) / "manifest.json"))
        elif kind is PathKind.FILES or (kind in NAMED and not is_name(kind, path)):
            paths.append(path)
        return path

    map_paths(section, collect)
    return paths


@dataclass(frozen=True)
class NamedFunction:
    """A Python function that a recipe names.

    Attributes:
        name: module:function.
        form: how the stage calls it.
        arguments: the recipe's keyword arguments.
    """

    name: str
    form: CallForm | None
    arguments: Mapping[str, Any]


def named_functions(section: Any, form: CallForm | None = None) -> list[NamedFunction]:
    """Lists the Python functions that a section names, in the order of its fields.

    Args:
        section: a section, or a list or dictionary of sections.
        form: how the function of a `Call` is called.
    """
    if isinstance(section, dict):
        return named_functions(list(section.values()), form)
    if isinstance(section, list):
        return [found for item in section for found in named_functions(item, form)]
    if not isinstance(section, BaseModel):
        return []
    found: list[NamedFunction] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        own = next((mark for mark in field.metadata if isinstance(mark, CallForm)), None)
        if isinstance(value, str) and _is_function(field.annotation, field.metadata):
            found.append(NamedFunction(value, own or form, getattr(section, "arguments", {})))
        found += named_functions(value, own)
    return found


def _is_function(annotation: Any, metadata: list[Any]) -> bool:
    """Tells whether a field is a FunctionName, possibly optional, by the pattern, which no other type has."""
    if any(getattr(mark, "pattern", None) == FUNCTION_PATTERN for mark in metadata):
        return True
    inner = [part for part in get_args(annotation) if hasattr(part, "__metadata__")]
    return any(_is_function(None, [*mark.metadata]) for part in inner for mark in part.__metadata__)


def check_origin(source: Any) -> Any:
    """Checks that a source of kind files has a path and no function, and one of kind function the reverse.

    Raises:
        ValueError: a field is missing, or belongs to the other kind.
    """
    for kind, field in (("files", "path"), ("function", "function")):
        if source.kind == kind and getattr(source, field) is None:
            wrong = [other for other in ("path", "function") if getattr(source, other) is not None]
            meant = (
                f"; for this {wrong[0]}, add `kind: {'files' if wrong[0] == 'path' else 'function'}`" if wrong else ""
            )
            raise ValueError(f"a source of kind {kind} needs a {field}{meant}")
    for kind, field in (("files", "path"), ("function", "function")):
        if source.kind != kind and getattr(source, field) is not None:
            raise ValueError(f"a source of kind {source.kind} takes no {field}; only one of kind {kind} does")
    if source.arguments and source.kind != "function":
        raise ValueError("arguments are for sources of kind function")
    return source
