"""The small recipe of the cluster floor's tests is the command line's, too."""

from tests.cluster.conftest import recipe_path

__all__ = ["recipe_path"]
