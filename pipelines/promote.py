"""The policy in training, given to the run's server while training goes on."""

import logging
from collections.abc import Callable
from pathlib import Path

from cluster.failures import StageError, UserError
from cluster.run import RunFolder
from cluster.version_commands import NotServedError, ask_server
from cluster.versions import Versions

POLICY = "policy"
logger = logging.getLogger(__name__)


def promote_unfinished(run: RunFolder, step: int, export: Callable[[Path], object]) -> None:
    """Has the run's server answer with the policy as it is after a step; where none runs, the next one starts with it.

    What keeps the server from it is logged and does not end the training.

    Args:
        export: writes the policy as a Hugging Face directory.
    """
    versions = Versions(run, POLICY)
    version = versions.keep(export)
    try:
        ask_server(run.root, "promote", {"model": POLICY, "version": version.weights})
    except NotServedError:
        versions.make_live(version.weights)
    except (UserError, StageError) as error:
        logger.warning("the policy of step %d was not promoted: %s", step, error)
        versions.drop(version)
