"""The extension of vLLM's workers: of the one in a rollout actor's process, and of those of an engine over several
devices, which run in processes of their own.

vLLM imports this module wherever it starts a worker, by the name of the class (`worker_extension_cls`).
"""

from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from actors.rollout.live_digest import live_digest
from actors.rollout.weight_transfer import BACKEND, ObjectStoreTransfer

# Here and nowhere else: a worker's process imports nothing of the actor's.
WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransfer)


class RolloutWorker:
    """Methods added to vLLM's worker, called by name and in the worker's process.

    After an upgrade of vLLM, look at the worker's `model_runner`.
    """

    model_runner: Any

    def live_digest(self, stripe: int | None) -> dict[str, int]:
        """Returns `live_digest` of the worker's model; every worker has to be asked."""
        return live_digest(self.model_runner.get_model(), stripe)


EXTENSION = f"{RolloutWorker.__module__}.{RolloutWorker.__qualname__}"
