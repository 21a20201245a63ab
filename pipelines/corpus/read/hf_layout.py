"""Selects the files of a subset and split in a folder laid out like a dataset on the Hugging Face Hub.

The `configs` in the README's front matter determine them, or else the names of files and folders, by the Hub's rules:
https://huggingface.co/docs/hub/datasets-data-files-configuration
"""

import re
from collections.abc import Sequence
from typing import Any

import yaml
from fsspec.utils import glob_translate

from cluster.errors import UserError
from cluster.run.storage.files import open_file, relative_name
from cluster.run.storage.remote import StoredFile, shown_name

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def files_of_split(folder: str, files: Sequence[StoredFile], split: str | None, subset: str | None) -> list[StoredFile]:
    """Selects the files of a split of a subset, in order.

    Args:
        folder: path or URI of the dataset.
        files: all its files.
        split: None selects all splits.
        subset: None selects the default one.

    Raises:
        UserError: there is no such subset or split.
    """
    configs = _configs(folder)
    if configs:
        patterns = _patterns(_config(configs, subset, folder), split)
        found = [
            file for file in files if any(pattern.fullmatch(relative_name(folder, file.name)) for pattern in patterns)
        ]
    else:
        found = [file for file in files if subset is None or subset in relative_name(folder, file.name).split("/")[:-1]]
        found = _by_name(folder, found, split) if split else found
    if not found:
        what = " of ".join([f"split {split!r}"] * bool(split) + [f"subset {subset!r}"] * bool(subset))
        raise UserError(f"{shown_name(folder)} has no files for {what}; fix split and subset of this corpus source")
    return found


def _by_name(folder: str, files: Sequence[StoredFile], split: str) -> list[StoredFile]:
    splits = [_split_of(relative_name(folder, file.name)) for file in files]
    if not any(splits):
        # On the Hub a folder that names no split is a training split.
        splits = ["train"] * len(files)
    return [file for file, found in zip(files, splits, strict=True) if found == split]


def _split_of(place: str) -> str | None:
    """Finds the split by a keyword between non-letters, in the file's name first, then in its folders' names."""
    for name in reversed(place.lower().split("/")):
        for split, words in _KEYWORDS.items():
            if re.search(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])", name):
                return split
    return None


def _configs(folder: str) -> list[dict[str, Any]]:
    try:
        with open_file(f"{folder}/README.md") as file:
            content = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    front = re.match(r"---\s*\n(.*?)\n---", content, re.DOTALL)
    try:
        card = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise UserError(f"the front matter of {shown_name(folder)}/README.md is no YAML: {error}") from error
    configs = card.get("configs") if isinstance(card, dict) else None
    return [config for config in configs or [] if isinstance(config, dict) and config.get("data_files")]


def _config(configs: Sequence[dict[str, Any]], subset: str | None, folder: str) -> dict[str, Any]:
    named = {str(config.get("config_name", "default")): config for config in configs}
    if subset is None:
        marked = next((config for config in configs if config.get("default")), None)
        return marked or named.get("default") or configs[0]
    if subset not in named:
        raise UserError(f"{shown_name(folder)} has no subset {subset!r}, only {', '.join(named)}")
    return named[subset]


def _patterns(config: dict[str, Any], split: str | None) -> list[re.Pattern[str]]:
    """Reads `data_files`: a pattern or a list of them (the training split), or a list of splits with their patterns."""
    entries = config["data_files"]
    entries = entries if isinstance(entries, list) else [entries]
    found: list[str] = []
    for entry in entries:
        name, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        if split in (None, name):
            found += [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    prefix = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    return [re.compile(glob_translate(f"{prefix}{path}")) for path in found]
