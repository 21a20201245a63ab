"""Reads recipes: YAML, then overrides from the command line, then keys of the version before, then validation."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.recipe.explain import explain
from cluster.recipe.recipe import Recipe
from cluster.recipe.renamed import with_new_names

# With more renamed keys than this, one line gives their number instead.
MAX_RENAME_LINES = 24


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: a YAML file.
        overrides: `key=value` each, with a dotted key such as `rlhf.steps=20`.

    Raises:
        UserError: the file is missing or not YAML, or it holds an unknown key, a wrong type or a value out of range;
            the message names the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        advice = (
            f"; name the recipe in this folder, such as {Path(path) / 'recipe.yaml'}" if Path(path).is_dir() else ""
        )
        if isinstance(error, UnicodeDecodeError):
            advice = "; save it as UTF-8"
        raise UserError(f"cannot read the recipe {path}: {_reason(error)}{advice}") from error
    try:
        data = _parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_without_source(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a recipe: it must hold sections such as model, corpus and sft")
    # A YAML anchor makes several sections one object: copy them, so that an override of one does not change the others.
    data = json.loads(json.dumps(data, default=str))
    for override in overrides or []:
        _apply(data, override)
    data, renamed = with_new_names(data)
    _print_new_names(path, renamed)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Recipe)}") from error


def _print_new_names(path: str | Path, renamed: dict[str, str]) -> None:
    """Prints on stderr which old keys were read as which new ones."""
    if len(renamed) > MAX_RENAME_LINES:
        print(
            f"triptych: {path}: {len(renamed)} keys have names of the version before; read by their present names",
            file=sys.stderr,
        )
        return
    for old, new in renamed.items():
        note = f"{old} is called {new} now; the old name works in this version only"
        print(f"triptych: {path}: {note}", file=sys.stderr)


def dump_recipe(recipe: Recipe) -> str:
    """Writes the recipe as YAML, defaults included; `load_recipe` reads it back as an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """A loader that reads 5e-5 as a number, which YAML 1.1 reads as text, and refuses a key that stands twice in a
    section, of which PyYAML would take the last alone, a key that is no name, and an alias of the section around it."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        # The anchors of the nodes around the present one.
        self._open: list[str | None] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                words = "a list or section stands where a key's name belongs"
                raise yaml.composer.ComposerError(None, None, words, key.start_mark)
            if key.value in seen:
                words = f"the key {key.value} stands twice in one section"
                raise yaml.composer.ComposerError(None, None, words, key.start_mark)
            seen.add(key.value)
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent) and (event := self.peek_event()).anchor in self._open:
            words = f"the alias *{event.anchor} stands inside what it names"
            raise yaml.composer.ComposerError(None, None, words, event.start_mark)
        anchor = self.peek_event().anchor
        self._open.append(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    """Parses YAML.

    Raises:
        yaml.YAMLError: it is not valid, or not what a recipe may hold.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("lists or sections lie too deep in each other") from error
    except ValueError as error:
        # A date or a number of the right form that does not exist, such as 2024-13-45.
        raise yaml.YAMLError(f"it holds a value that cannot be read: {error}") from error


def _without_source(error: yaml.YAMLError) -> str:
    """Returns the message in one line, without the name that PyYAML gives to a text that it did not read itself."""
    return " ".join(str(error).replace(' in "<unicode string>",', " in").split())


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"cannot read the override {override!r}: write key=value, such as rlhf.steps=20")
    target: Any = data
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(target, dict):
            target = target.setdefault(name, {})
        elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
            target = target[int(name)]
        else:
            raise UserError(f"override {override!r}: the recipe has no {name!r} to set {last!r} in")
    if not isinstance(target, dict):
        raise UserError(f"override {override!r}: {'.'.join(parents)!r} is not a section")
    try:
        target[last] = _parse(value)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error
