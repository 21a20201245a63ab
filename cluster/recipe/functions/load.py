"""Imports the functions that a recipe names: sources, annotators, rewards, environments and exams."""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from cluster.errors import UserError
from cluster.recipe.functions.deadline import call_within, failure_reason

# The most seconds to import a module.
IMPORT_SECONDS = 300.0
# Modules that recipes of the version before may name, by their former names. Can go with the next version.
MOVED = {"actors.checks": "actors.rewards.builtin"}


def load_function(name: str, what: str = "reward function") -> Callable[..., Any]:
    """Imports the function that a recipe names.

    Args:
        name: module:function, the module on Python's path.
        what: the function's purpose, for messages.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    module, _, function = name.partition(":")
    if module in MOVED:
        print(f"{what} {name} is now {MOVED[module]}:{function}: use this name in the recipe", file=sys.stderr)
        module = MOVED[module]
    try:
        found = getattr(call_within(IMPORT_SECONDS, importlib.import_module, module), function)
    except (ImportError, AttributeError) as error:
        how = "name it module:function, in a folder of PYTHONPATH"
        raise UserError(f"{what} {name}: {error}; {how}") from error
    # The module is the user's own, and may fail in any way.
    except Exception as error:
        raise UserError(f"{what} {name}: importing {module} {failure_reason(error)}") from error
    if not callable(found):
        raise UserError(f"{what} {name} is a {type(found).__name__}, not a function")
    return found


def is_coroutine_function(function: Any) -> bool:
    """Tells whether calls of a function are awaited: one made by `async def`, or an object whose `__call__` is."""
    own_call = None if inspect.isclass(function) else getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own_call)
