"""Provides texts that installed packages contain, as sources of kind function: nothing has to be downloaded."""

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import yaml

# The parser of libyaml takes a tenth of the time of that in Python.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Folders of the standard library whose docstrings do not document its use.
_SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def random_facts(seed: int) -> Iterator[str]:
    """Yields documents of three to five facts of the package randfacts, each fact once, in an order set by the seed."""
    import randfacts

    rng = random.Random(seed)
    # Nearly half of the sentences lack a full stop and would run into the next.
    facts = sorted({fact if fact.endswith((".", "!", "?", '"')) else f"{fact}." for fact in randfacts.safe_facts})
    rng.shuffle(facts)
    start = 0
    while start < len(facts):
        count = rng.randint(3, 5)
        yield " ".join(facts[start : start + count])
        start += count


def chatterbot_dialogues(seed: int) -> Iterator[str]:
    """Yields the English dialogues of the package chatterbot-corpus, a turn per line.

    Args:
        seed: without effect.
    """
    del seed
    folder = files("chatterbot_corpus") / "data" / "english"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if not file.name.endswith(".yml"):
            continue
        for turns in yaml.load(file.read_text(encoding="utf-8"), _LOADER)["conversations"]:
            yield "\n".join(str(turn) for turn in turns)


def standard_library() -> list[Path]:
    """Lists the source files of Python's standard library, among them the topics of the language reference."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(file for file in root.rglob("*.py") if not _SKIPPED & set(file.relative_to(root).parts))


def docstrings(seed: int, paths: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yields name and text of the docstrings of the standard library and of `pydoc_data`'s topics, by parsing alone.

    Args:
        seed: without effect.
        paths: files of the standard library; all by default.
    """
    del seed
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in standard_library() if paths is None else map(Path, paths):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        tree = ast.parse(path.read_bytes())
        if module == "pydoc_data.topics":
            yield from _topics(tree)
            continue
        for index, node in enumerate(ast.walk(tree)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{module}:{index}", text


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield f"pydoc_data.topics:{name}", text
