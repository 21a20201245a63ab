"""vLLM's asynchronous engine without its second process, for CPUs.

`AsyncLLM` always starts its engine core as a process of its own, which imports vLLM again: 9 s of CPU time and 0.7 GB
for every model. On a GPU that keeps Python off the critical path; for small models on a few cores it is the main cost.

After an upgrade of vLLM, compare `ThreadedCore` with `AsyncMPClient` in `vllm.v1.engine.core_client`: `AsyncLLM` may
call methods that are missing here.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from serve.compat.vllm_engine import core_client
from serve.replica.metered_llm import MeteredLLM

T = TypeVar("T")


@dataclass
class EngineMonitor:
    """The attribute by which `AsyncLLM` learns that its engine core died."""

    engine_dead: bool = False


class ThreadedCore(InprocClient):
    """vLLM's in-process client, plus the asynchronous methods that `AsyncLLM` calls; one thread does all the work."""

    def __init__(
        self, thread: ThreadPoolExecutor, vllm_config: VllmConfig, executor_class: type[Executor], log_stats: bool
    ) -> None:
        super().__init__(vllm_config, executor_class, log_stats)
        self.resources = EngineMonitor()
        self.engine_ranks_managed = [0]
        self.thread = thread
        self.busy = asyncio.Event()

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *arguments)

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self.get_supported_tasks()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        await self._run(self.add_request, request)
        self.busy.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        await self._run(self.abort_requests, request_ids)

    async def add_lora_async(self, lora_request: LoRARequest) -> bool:
        return await self._run(self.add_lora, lora_request)

    async def pause_scheduler_async(self, mode: PauseMode, clear_cache: bool) -> None:
        await self._run(self.engine_core.pause_scheduler, mode, clear_cache)

    async def resume_scheduler_async(self) -> None:
        await self._run(self.engine_core.resume_scheduler)
        # A paused scheduler reports no requests although it keeps some.
        self.busy.set()

    async def collective_rpc_async(
        self,
        method: str | Callable[..., T],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[T]:
        return await self._run(self.collective_rpc, method, timeout, args, kwargs)

    async def reset_prefix_cache_async(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        return await self._run(self.reset_prefix_cache, reset_running_requests, reset_connector)

    async def get_output_async(self) -> EngineCoreOutputs:
        while True:
            await self.busy.wait()
            try:
                outputs = await self._run(self.get_output)
            except BaseException:
                self.resources.engine_dead = True
                raise
            if not self.engine_core.scheduler.has_requests():
                self.busy.clear()
            if outputs.outputs:
                return outputs


def start_in_process(
    arguments: AsyncEngineArgs, thread: ThreadPoolExecutor, stat_loggers: list[Any] | None = None
) -> AsyncLLM:
    """Returns an engine whose engine core runs in one thread of this process. Needs a running event loop.

    Engines of one process have to share the thread: vLLM keeps the batch that it computes in a global of its module.

    Args:
        arguments: vLLM's arguments.
        thread: the thread.
        stat_loggers: vLLM's classes of loggers that are given the state after each step.
    """

    def make(vllm_config: VllmConfig, executor_class: type[Executor], log_stats: bool, **_: Any) -> ThreadedCore:
        # The other arguments concern processes.
        return ThreadedCore(thread, vllm_config, executor_class, log_stats)

    with core_client(make):
        return MeteredLLM.from_engine_args(arguments, stat_loggers=stat_loggers)
