"""The functions that a recipe names: `check` looks for them in the source of their modules before a run starts, `load`
imports them."""

from cluster.recipe.functions.check import check_function
from cluster.recipe.functions.load import load_function

__all__ = ["check_function", "load_function"]
