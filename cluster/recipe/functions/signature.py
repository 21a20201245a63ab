"""Checks by its source that a function which a recipe names can be called as the stage calls it."""

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LITERALS = (ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Set, ast.Dict, *_COMPREHENSIONS)


@dataclass(frozen=True)
class CallForm:
    """How a stage calls a function that a recipe names; a mark of the recipe's field.

    Attributes:
        positional: names of the arguments that are given by position.
        keywords: names of those that are given by keyword, beside `arguments` of the recipe.
        returns: what it returns, in words.
        methods: methods of a class that may be named in its place; empty if a class may not be.
        makes: whether the value may be an object, so that a class may stand in for the function that makes it.
    """

    positional: tuple[str, ...]
    returns: str
    keywords: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    makes: bool = False

    def signature(self, arguments: Mapping[str, Any]) -> str:
        """Writes down the call and its value, such as `(question, answer) -> number`."""
        return f"({', '.join((*self.positional, *self.keywords, *arguments))}) -> {self.returns}"


REWARD = CallForm(("question", "answer"), "number")
ANNOTATOR = CallForm(("prompt", "answers", "chance"), "ranks")
TEXTS = CallForm((), "texts", keywords=("seed",), makes=True)
ROWS = CallForm((), "rows", keywords=("seed",), makes=True)
EXAM = CallForm((), "Exam", keywords=("seed",), makes=True)
ENVIRONMENT = CallForm(("question", "answers"), "message", methods=("reset", "step"))


def signature_fault(statements: Sequence[ast.stmt], name: str, form: CallForm, arguments: Mapping[str, Any]) -> str:
    """Says why what a module's source binds to a name cannot be called in a form, to follow "line N: NAME".

    Names that are bound twice or within blocks, decorated functions and derived classes pass: their source does not
    decide what they take.

    Args:
        statements: those of the module.
        name: the name, which one of them binds.
        form: how the stage calls it.
        arguments: the recipe's keyword arguments.

    Returns:
        "line N: " and the fault; empty if there is none.
    """
    bound = [node for node in statements if name in _bound(node)]
    if len(bound) != 1:
        return ""
    fault = _fault(bound[0], form, arguments)
    return f"line {bound[0].lineno}: {name} {fault}" if fault else ""


def _bound(statement: ast.stmt) -> set[str]:
    """Returns the names that a statement of a module may bind."""
    found = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(statement):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
        # What is bound within it is not the module's.
        found = {statement.name}
    return found


def _fault(statement: ast.stmt, form: CallForm, arguments: Mapping[str, Any]) -> str:
    if isinstance(statement, ast.Import):
        return "is a module, not a function"
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        single = isinstance(statement, ast.AnnAssign) or isinstance(statement.targets[0], ast.Name)
        if single and isinstance(statement.value, _LITERALS):
            return f"is a value, not a function; it should be a function {form.signature(arguments)}"
        if single and isinstance(statement.value, ast.Lambda):
            return _call_fault(statement.value.args, form, arguments)
    if isinstance(statement, ast.ClassDef):
        return _class_fault(statement, form, arguments)
    if isinstance(statement, _FUNCTIONS) and not statement.decorator_list:
        return _call_fault(statement.args, form, arguments)
    return ""


def _class_fault(found: ast.ClassDef, form: CallForm, arguments: Mapping[str, Any]) -> str:
    if found.bases or found.keywords or found.decorator_list:
        return ""
    names = {name for node in found.body for name in _bound(node)}
    if missing := [method for method in form.methods if method not in names]:
        return f"is a class without {' and '.join(missing)}; it should have the methods {' and '.join(form.methods)}"
    if not form.methods and not form.makes:
        return f"is a class, not a function; it should be a function {form.signature(arguments)}"
    return ""


def _call_fault(own: ast.arguments, form: CallForm, arguments: Mapping[str, Any]) -> str:
    given = ", ".join((*form.positional, *(f"{name}=" for name in (*form.keywords, *arguments))))
    try:
        _signature(own).bind(*form.positional, **dict.fromkeys((*form.keywords, *arguments)))
    except TypeError as error:
        return f"cannot be called with ({given}): {error}; its signature should be {form.signature(arguments)}"
    return ""


def _signature(own: ast.arguments) -> inspect.Signature:
    """Builds the signature of a definition, without annotations, and with None for every default."""
    kinds, made = inspect.Parameter, list[inspect.Parameter]()
    placed: list[tuple[ast.arg, Any]] = [(one, kinds.POSITIONAL_ONLY) for one in own.posonlyargs]
    placed += [(one, kinds.POSITIONAL_OR_KEYWORD) for one in own.args]
    first_default = len(placed) - len(own.defaults)
    for number, (one, kind) in enumerate(placed):
        made.append(kinds(one.arg, kind, default=None if number >= first_default else kinds.empty))
    if own.vararg:
        made.append(kinds(own.vararg.arg, kinds.VAR_POSITIONAL))
    for one, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
        made.append(kinds(one.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None))
    if own.kwarg:
        made.append(kinds(own.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(made)
