"""Checks the functions that a recipe names by the source of their modules, without running any of it."""

import ast
import difflib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from typing import Any

from cluster.errors import UserError
from cluster.recipe.functions.load import MOVED
from cluster.recipe.functions.signature import CallForm, signature_fault

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Statements behind which an import is always reached, and finds Python's path as it is now: these, and those without
# any of `_ACTS`, such as docstrings and constants.
_HARMLESS = (*_DEFINITIONS, ast.Import, ast.ImportFrom)
_ACTS = (
    *(ast.Call, ast.Attribute, ast.Subscript, ast.Await, ast.Yield, ast.YieldFrom),
    *(ast.If, ast.Try, ast.TryStar, ast.With, ast.For, ast.While, ast.Match, ast.Return, ast.Raise, ast.Assert),
)


def check_function(name: str, form: CallForm | None = None, arguments: Mapping[str, Any] | None = None) -> None:
    """Checks that a module has the function that a recipe names, that it can be called as the stage calls it, and that
    the packages which both import are installed.

    Cases that the source does not decide pass: modules that are not Python source, names that a module makes when it
    runs, and imports behind a condition or behind statements that may change Python's path.

    Args:
        name: module:function.
        form: how the stage calls it; None does not check that.
        arguments: the recipe's keyword arguments.

    Raises:
        UserError: the module is not found, is not valid Python, lacks the function, or imports what is not installed;
            or the function takes other arguments, and the message says which it should take.
    """
    module, _, function = name.partition(":")
    module = MOVED.get(module, module)
    spec = _find_module(module)
    if spec is None:
        raise UserError(f"{name}: Python finds no module {module}; {_advice(module, function)}")
    if not spec.origin or not spec.origin.endswith(".py"):
        return
    tree = _parse(name, spec.origin)
    names = set(_bound_names(tree.body))
    if function not in names:
        if names & {"*", "__getattr__"}:
            return
        near = difflib.get_close_matches(function, sorted(names), n=1)
        raise UserError(
            f"{name}: {spec.origin} has no {function}" + (f"; the nearest name is {near[0]}" if near else "")
        )
    if form and (fault := signature_fault(tree.body, function, form, arguments or {})):
        raise UserError(f"{name}: {spec.origin} {fault}")
    body = next((item.body for item in tree.body if isinstance(item, _DEFINITIONS) and item.name == function), [])
    for statement in _certain_imports(tree.body, body):
        for imported in _imported_modules(statement):
            if find_spec(imported) is None:
                where = f"{spec.origin} line {statement.lineno} imports {imported}"
                raise UserError(
                    f"{name}: {where}, which Python does not find; install it, or add its folder to PYTHONPATH"
                )


def _find_module(module: str) -> ModuleSpec | None:
    """Finds a module without importing the packages above it."""
    first, *inner = module.split(".")
    found, path = find_spec(first) if first else None, first
    for part in inner:
        path = f"{path}.{part}"
        if found is None or found.submodule_search_locations is None:
            return None
        found = PathFinder.find_spec(path, list(found.submodule_search_locations))
    return found


def _advice(module: str, function: str) -> str:
    if module.endswith(".py"):
        return f"write it without its suffix, {module.removesuffix('.py')}:{function}"
    return "PYTHONPATH=. has it look in this folder"


def _parse(name: str, file: str) -> ast.Module:
    try:
        with tokenize.open(file) as source:
            return ast.parse(source.read(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read {file}: {error}") from error
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{name}: {file}{line} is not valid Python: {reason}") from error


def _bound_names(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Yields the names that statements bind, within blocks too; `*` for a star import."""
    waiting: list[ast.AST] = [*statements]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DEFINITIONS):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            waiting += ast.iter_child_nodes(node)


def _certain_imports(module: Sequence[ast.stmt], function: Sequence[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields the imports that the module, and then a call of the function, reach on Python's path as it is."""
    for statement in (*module, *function):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        if not isinstance(statement, _HARMLESS) and any(isinstance(part, _ACTS) for part in ast.walk(statement)):
            return


def _imported_modules(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Returns the first names of the modules of an import, which tell whether their packages are installed."""
    if isinstance(statement, ast.Import):
        return [alias.name.partition(".")[0] for alias in statement.names]
    return [statement.module.partition(".")[0]] if statement.module and not statement.level else []
