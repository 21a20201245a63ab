"""The functions that a recipe names: `check` looks for them in the source of their modules before a run starts, `load`
imports them, and `deadline` calls them for no longer than they may take; `coroutines` does so for coroutine functions.
"""

from cluster.recipe.functions.check import check_function
from cluster.recipe.functions.coroutines import CoroutineCaller
from cluster.recipe.functions.deadline import (
    SOURCE_SECONDS,
    LateError,
    call_within,
    failure_reason,
    in_order,
    items_within,
    one_line,
)
from cluster.recipe.functions.load import is_coroutine_function, load_function

__all__ = [
    "SOURCE_SECONDS",
    "CoroutineCaller",
    "LateError",
    "call_within",
    "check_function",
    "failure_reason",
    "in_order",
    "is_coroutine_function",
    "items_within",
    "load_function",
    "one_line",
]
