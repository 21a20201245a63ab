"""A replica: a process with models, and what the gateway calls on them. Importing this file does not import vLLM."""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.types import reward_scale_file
from cluster.run.versions import live_version
from cluster.runtime.plan import Allocation
from serve.replica.autoscaling import REQUESTS
from serve.replica.lora import LoraModel
from serve.transport.connection import Address, ReplicaConnection, connect, new_name
from serve.transport.messages import Endpoint, Part, Presence, Promoted, Served


def engine_environment(share: Allocation) -> dict[str, str]:
    """Environment variables that a replica's process must have before vLLM is imported."""
    # vLLM's own set-up of logging would close Ray Serve's log of the replica, and a controller that was started again
    # takes a replica without one for broken.
    common = {"OMP_NUM_THREADS": str(share.threads), "VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if share.gpus:
        return common
    # No process of its own for vLLM's worker, and engines that share the cores instead of each binding all of them.
    return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class ReplicaServer:
    """Takes the gateway's calls to the models of one process."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models, self._name = models, new_name()
        self._gateways: dict[Address, ReplicaConnection] = {}
        self._connecting = asyncio.Lock()

    async def connect(self, address: Address) -> Presence:
        """Answers what a gateway asks from now on, if it does not yet.

        Raises:
            OSError: the gateway does not answer.
        """
        await self.check_health()
        async with self._connecting:
            self._gateways = {known: gateway for known, gateway in self._gateways.items() if not gateway.lost}
            if address not in self._gateways:
                self._gateways[address] = await connect(address, self._name, self._answer)
        models = self._models.items()
        return Presence({name: one.live() for name, one in models}, {name: one.requests() for name, one in models})

    async def leave(self) -> None:
        """Answers what it has been asked, and nothing more."""
        await asyncio.gather(*(gateway.leave() for gateway in self._gateways.values()))

    def _answer(self, model: str, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        return self._models[model].answer(endpoint, body)

    async def card(self, model: str) -> dict[str, Any]:
        """See `Served`."""
        return await self._models[model].card()

    async def schemas(self, model: str) -> dict[Endpoint, dict[str, Any]]:
        """See `Served`."""
        return self._models[model].schemas()

    async def promote(self, model: str, folder: Path, weights: str) -> Promoted:
        """See `Served`; it has the version already if it started since."""
        if self._models[model].live() == weights:
            return Promoted(0.0)
        return await self._models[model].promote(folder, weights)

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """Called by Ray Serve, for `serve.replica.autoscaling.replicas_wanted`."""
        return {REQUESTS: sum(model.requests() for model in self._models.values())}

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        for model in self._models.values():
            await model.check_health()


class Replica(ReplicaServer):
    """A Ray Serve deployment of one or several models.

    vLLM, torch and Ray cost a process 15 s of CPU time and 0.7 GB before it holds a model: small ones share one.

    Args:
        models: the name that clients use, and the directory, or that of the versions (`cluster.run.versions`), of each.
        context: tokens a request may have.
        share: what each model may use.
        tool_parser: how they write calls of tools, by vLLM's name, if they do.
        adapters: the folders of the adapters beside each model, by their names.
    """

    async def __init__(  # type: ignore[misc]
        self,
        models: Mapping[str, Path],
        context: int,
        share: Allocation,
        tool_parser: str | None,
        adapters: Mapping[str, Mapping[str, Path]],
    ) -> None:
        # It would override the size of the cache that the engine's arguments set.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        # vLLM keeps what it is computing in the module: engines of one process take turns.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        loaded: dict[str, Served] = {}
        for name, path in models.items():
            version = live_version(path)
            if is_reward_model(version.folder):
                from serve.replica.reward_scorer import RewardScorer

                loaded[name] = RewardScorer(name, version, context, share)
                continue
            from serve.replica.vllm_engine import VllmEngine

            engine = VllmEngine(name, version, context, share, self._thread, tool_parser, adapters[name])
            await engine.load_adapters()
            loaded[name] = engine
            loaded |= {beside: LoraModel(beside, folder, engine) for beside, folder in adapters[name].items()}
        super().__init__(loaded)

    async def __del__(self) -> None:
        # Ray Serve's hook at shutdown. On GPUs an engine's core is a process of its own: it has to be told.
        await self.leave()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for model in self._models.values():
            model.close()


def is_reward_model(folder: Path) -> bool:
    """Whether a model scores answers: the scale of its rewards lies with it."""
    return reward_scale_file(folder).exists()
