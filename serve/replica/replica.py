"""The replica: a process with one or several models. It loads them, answers the gateway's control calls, and connects
to the gateway; requests then go from the connection to the model that they name.

Importing this file does not import vLLM.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.types import reward_scale_file
from cluster.recipe.serve import Serve
from cluster.run.versions import live_version
from cluster.runtime.plan import Allocation
from serve.compat.ray_serve import listen_on_node_address
from serve.compat.vllm_engine import CACHE_VARIABLE
from serve.replica.autoscaling import REQUESTS
from serve.replica.lora import LoraModel, live_adapter
from serve.transport.gateway_end import Address, new_replica_id
from serve.transport.messages import Endpoint, PromotionResult, ReplicaStatus, ServedModel
from serve.transport.replica_end import ReplicaConnection, connect


class ReplicaServer:
    """Answers the control calls of gateways for the models of one process, and connects the models to them."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models, self._id = models, new_replica_id()
        self._connections: dict[Address, ReplicaConnection] = {}
        self._connecting = asyncio.Lock()

    async def connect(self, address: Address) -> ReplicaStatus:
        """Connects to a gateway unless it is connected already, and returns its status.

        Raises:
            OSError: the gateway cannot be reached.
        """
        await self.check_health()
        async with self._connecting:
            self._connections = {known: one for known, one in self._connections.items() if not one.lost}
            if address not in self._connections:
                self._connections[address] = await connect(address, self._id, self._models)
        models = self._models.items()
        return ReplicaStatus(
            {name: model.weights_version() for name, model in models},
            {name: model.requests() for name, model in models},
            {name: state for name, model in models if (state := model.engine_state())},
        )

    async def drain(self) -> None:
        """Accepts no further requests, and returns when the accepted ones are answered."""
        await asyncio.gather(*(connection.drain() for connection in self._connections.values()))

    async def card(self, model: str) -> dict[str, Any]:
        """See `ServedModel`."""
        return await self._models[model].card()

    async def schemas(self, model: str) -> dict[Endpoint, dict[str, Any]]:
        """See `ServedModel`."""
        return self._models[model].schemas()

    async def promote(self, model: str, folder: Path, weights: str) -> PromotionResult:
        """See `ServedModel`. A replica that started after the promotion has the version already."""
        if self._models[model].weights_version() == weights:
            return PromotionResult(0.0)
        return await self._models[model].promote(folder, weights)

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """Returns the number of requests in work. Called by Ray Serve, for `autoscaling.desired_replicas`."""
        return {REQUESTS: sum(model.requests() for model in self._models.values())}

    async def check_health(self) -> None:
        """Raises if a model cannot answer any more. Ray Serve, which calls this, then replaces the replica."""
        for model in self._models.values():
            await model.check_health()


class Replica(ReplicaServer):
    """The Ray Serve deployment of one or several models.

    vLLM, torch and Ray cost a process 15 s of CPU time and 0.7 GB before it holds a model: small models share one.

    Args:
        models: the directory, or the folder of versions (`cluster.run.versions`), of each model, by its name.
        context: the most tokens of a request, prompt and answer together.
        allocation: the resources of each model.
        section: the recipe's section, for the settings of the engines and the parsers of their answers.
        adapters: the folders, or the folders of versions, of each model's adapters, by their names.
    """

    async def __init__(  # type: ignore[misc]
        self,
        models: Mapping[str, Path],
        context: int,
        allocation: Allocation,
        section: Serve,
        adapters: Mapping[str, Mapping[str, Path]],
    ) -> None:
        listen_on_node_address()
        os.environ.pop(CACHE_VARIABLE, None)
        # vLLM keeps the batch that it computes in its module: the engines of one process take turns in one thread.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        loaded: dict[str, ServedModel] = {}
        for name, path in models.items():
            version = live_version(path)
            if is_reward_model(version.folder):
                from serve.replica.reward_scorer import RewardScorer

                loaded[name] = RewardScorer(name, version, context, allocation)
                continue
            from serve.replica.vllm_engine import VllmEngine

            live = {adapter: live_adapter(folder) for adapter, folder in adapters[name].items()}
            folders = {adapter: one.folder for adapter, one in live.items()}
            engine = VllmEngine(name, version, context, allocation, self._thread, section, folders)
            await engine.load_adapters()
            loaded[name] = engine
            loaded |= {adapter: LoraModel(adapter, one.weights, engine) for adapter, one in live.items()}
        super().__init__(loaded)

    async def __del__(self) -> None:
        # Called by Ray Serve at shutdown. On GPUs an engine's core is a process of its own, which has to be ended.
        await self.drain()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for model in self._models.values():
            model.close()


def is_reward_model(folder: Path) -> bool:
    """Returns whether a model scores answers: reward models have a file with the scale of their rewards."""
    return reward_scale_file(folder).exists()
