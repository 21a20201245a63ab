"""vLLM's asynchronous engine as a replica runs it: with a count of the tokens that it computes for each request, and
without its second process where there is no GPU.

vLLM reports the usage of a request with its last output, which a cancelled request never gets, and with
`stream_interval` or `n` its outputs lag behind the tokens that have been computed.

`AsyncLLM` always starts its engine core as a process of its own, which imports vLLM again: 9 s of CPU time and 0.7 GB
for every model. On a GPU that keeps Python off the critical path; for small models on a few cores it is the main cost.

After an upgrade of vLLM, compare `ThreadedCore` with `AsyncMPClient` in `vllm.v1.engine.core_client`: `AsyncLLM` may
call methods that are missing here.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from cluster.runtime.plan import Allocation
from serve.compat.vllm_engine import core_client, limit_white_space
from serve.replica.engine_stats import EngineStats
from serve.transport.messages import TALLY, Tally

T = TypeVar("T")


class MeteredLLM(AsyncLLM):
    """An `AsyncLLM` that adds to the `TALLY` of each request, and limits the white space in structural tags.

    After an upgrade of vLLM, look at `OutputProcessor.process_outputs`, which is given all new tokens, and at the ids
    in its `request_states`: that of a caller's request is `external_req_id`, also for each of its `n` answers.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tallies: dict[str, Tally] = {}
        self._numbers = itertools.count()
        self._process_outputs = self.output_processor.process_outputs
        self.output_processor.process_outputs = self._count_and_process  # type: ignore[method-assign, assignment]

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs of a request, as `AsyncLLM.generate` does."""
        # Clients may choose an id, and several the same.
        request_id = f"{request_id}-{next(self._numbers)}"
        limit_white_space(sampling_params)
        tally = self._tallies[request_id] = TALLY.get(Tally())
        if isinstance(prompt, dict):
            tally.prompt_tokens += len(prompt.get("prompt_token_ids") or ())
        try:
            async with aclosing(super().generate(prompt, sampling_params, request_id, **options)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            del self._tallies[request_id]

    def _count_and_process(self, outputs: list[EngineCoreOutput], *arguments: Any, **options: Any) -> Any:
        for output in outputs:
            state = self.output_processor.request_states.get(output.request_id)
            if state and (tally := self._tallies.get(state.external_req_id)):
                tally.completion_tokens += len(output.new_token_ids)
        return self._process_outputs(outputs, *arguments, **options)


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


def start_engine(arguments: AsyncEngineArgs, allocation: Allocation, thread: ThreadPoolExecutor) -> AsyncLLM:
    """Returns an engine, whose core runs in a process of its own on a GPU, else in a thread of this process.

    Needs a running event loop.

    Args:
        arguments: vLLM's arguments.
        allocation: the resources of the engine.
        thread: the thread for engines without a GPU. Those of one process have to share it: vLLM keeps the batch that
            it computes in a global of its module.
    """
    stats: list[Any] = [EngineStats]
    if allocation.gpus:
        return MeteredLLM.from_engine_args(arguments, stat_loggers=stats)

    def make(vllm_config: VllmConfig, executor_class: type[Executor], log_stats: bool, **_: Any) -> ThreadedCore:
        # The other arguments concern processes.
        return ThreadedCore(thread, vllm_config, executor_class, log_stats)

    with core_client(make):
        return MeteredLLM.from_engine_args(arguments, stat_loggers=stats)
