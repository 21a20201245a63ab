"""One vLLM engine with vLLM's own OpenAI serving classes in front of it."""

import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast, get_args

from jinja2 import TemplateError
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from starlette.requests import Request
from transformers import AutoTokenizer
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath, LoRAModulePath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.async_llm import AsyncLLM

from actors.compat import whole_prompts
from actors.rollout.weights import mismatch
from cluster.errors import UserError
from cluster.run.versions import Version
from cluster.runtime.plan import Allocation
from serve.http.openapi import REFERENCE
from serve.replica.lora import rank_of
from serve.replica.vllm_in_process import start_in_process
from serve.replica.weight_swap import InflightRequest, WeightSwapGate
from serve.transport.messages import Endpoint, Part, Promoted, Reply, ResponseStart, Usage

logger = logging.getLogger("ray.serve")

# Resident from the start, because vLLM fills its cache with zeros. It holds 43,000 tokens of a 2.5M model (4 layers,
# width 192, float32): 170 full conversations of 256 tokens.
CPU_CACHE_BYTES = 256 << 20
# On CPUs, what vLLM takes by itself.
STEP_TOKENS = 2048
# Before a change of weights, for answers that are being written.
DRAIN_SECONDS = 0.5

Answer = AsyncGenerator[str, None] | BaseModel
Handler = Callable[[Any, Request], Awaitable[Answer]]


def engine_arguments(model: Path, context: int, share: Allocation) -> AsyncEngineArgs:
    """How vLLM loads a model. On CPUs float32, and eager: compiling a small model takes longer than it saves."""
    arguments = AsyncEngineArgs(
        model=str(model),
        max_model_len=context,
        disable_log_stats=True,
        worker_extension_cls="serve.replica.weight_swap.Swap",
        **({} if share.gpus else whole_prompts(context, STEP_TOKENS)),
    )
    if share.gpus:
        arguments.gpu_memory_utilization = 0.9 * min(share.gpus, 1.0)
        arguments.tensor_parallel_size = max(1, int(share.gpus))
    else:
        arguments.dtype = "float32"
        arguments.enforce_eager = True
        arguments.kv_cache_memory_bytes = CPU_CACHE_BYTES
    return arguments


def is_chat_tuned(model: Path, end_ids: set[int]) -> bool:
    """Whether a model ends its turns by itself: its template closes a turn with a token that ends generation."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return not end_ids.isdisjoint(tokenizer.apply_chat_template(turns, return_dict=False))


def _tools(parser: str | None) -> dict[str, Any]:
    if parser is None:
        return {}
    known = ToolParserManager.list_registered()
    if parser not in known:
        raise UserError(f"serve.tool_parser: vLLM has no parser {parser!r}; it has {', '.join(sorted(known))}")
    return {"enable_auto_tools": True, "tool_parser": parser}


def _room(adapters: Mapping[str, Path]) -> MaxLoRARanks:
    """The least of vLLM's ranks that is enough for all."""
    most = max(map(rank_of, adapters.values()))
    for rank in get_args(MaxLoRARanks):
        if rank >= most:
            return cast(MaxLoRARanks, rank)
    raise UserError(f"serve.adapters: vLLM takes ranks of {max(get_args(MaxLoRARanks))} at most, and one has {most}")


class VllmEngine:
    """Answers OpenAI requests about one model. Must be made inside a running event loop.

    Args:
        name: what clients call the model.
        version: its directory and weights.
        context: tokens a request may have.
        share: what it may use.
        thread: where it computes, without GPUs.
        tool_parser: how it writes calls of tools, by vLLM's name, if it does.
        adapters: the folders of those that it also answers with, by their names.

    Raises:
        UserError: vLLM has no such parser, or no room for an adapter's rank.
    """

    def __init__(
        self,
        name: str,
        version: Version,
        context: int,
        share: Allocation,
        thread: ThreadPoolExecutor,
        tool_parser: str | None,
        adapters: Mapping[str, Path],
    ) -> None:
        tools = _tools(tool_parser)
        model = self.model = version.folder
        self.gate = WeightSwapGate(version.weights)
        arguments = engine_arguments(model, context, share)
        if adapters:
            arguments.enable_lora, arguments.max_loras = True, len(adapters)
            arguments.max_lora_rank = _room(adapters)
        self.engine = AsyncLLM.from_engine_args(arguments) if share.gpus else start_in_process(arguments, thread)
        end_ids = self.engine.model_config.try_get_generation_config().get("eos_token_id", [])
        self.chat_tuned = is_chat_tuned(model, {end_ids} if isinstance(end_ids, int) else set(end_ids))
        beside = [LoRAModulePath(name, str(folder)) for name, folder in adapters.items()]
        self.models = OpenAIServingModels(
            self.engine, [BaseModelPath(name=name, model_path=name)], lora_modules=beside or None
        )
        renderer = OnlineRenderer(
            self.engine.model_config,
            self.engine.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            **tools,
        )
        chat = OpenAIServingChat(
            self.engine,
            self.models,
            "assistant",
            online_renderer=renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            **tools,
        )
        completion = OpenAIServingCompletion(self.engine, self.models, online_renderer=renderer, request_logger=None)
        tokens = ServingTokenization(
            self.models, renderer, request_logger=None, chat_template=None, chat_template_content_format="auto"
        )
        self.endpoints: dict[Endpoint, tuple[TypeAdapter[Any], Handler]] = {
            "chat/completions": (TypeAdapter(ChatCompletionRequest), chat.create_chat_completion),
            "completions": (TypeAdapter(CompletionRequest), completion.create_completion),
            "tokenize": (TypeAdapter(TokenizeRequest), tokens.create_tokenize),
            "detokenize": (TypeAdapter(DetokenizeRequest), tokens.create_detokenize),
        }

    async def load_adapters(self) -> None:
        """Loads them, after which requests may name them.

        Raises:
            ValueError: one does not fit the model.
        """
        await self.models.init_static_loras()

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Yields an `ResponseStart`, then one `Reply`, or a stream's server-sent events and their `Usage`.

        Closing it aborts the request.
        """
        if endpoint not in self.endpoints:
            message = "this model writes and does not score; name a reward model"
            yield _reply(create_error_response(message, param="model"))
            return
        async with self.gate.inside() as entered:
            yield ResponseStart(entered.versions[0])
            async with aclosing(self._parts(endpoint, body, entered)) as parts:
                async for part in parts:
                    yield part

    async def _parts(self, endpoint: Endpoint, body: dict[str, Any], entered: InflightRequest) -> AsyncGenerator[Part]:
        request_type, handler = self.endpoints[endpoint]
        # vLLM leaves the count of tokens on the HTTP request, which here is a blank one: the real one stays outside.
        http = Request({"type": "http", "headers": []})
        try:
            answer = await handler(request_type.validate_python(body), http)
        except ValidationError as error:
            yield _reply(_explain(error))
        except (VLLMError, TemplateError, ValueError, TypeError, OverflowError, NotImplementedError) as error:
            yield _reply(create_error_response(error))
        else:
            if isinstance(answer, BaseModel):
                yield _reply(answer, entered.mixed)
                return
            async with aclosing(answer) as events:
                async for event in events:
                    yield event
            used = http.state.request_metadata.final_usage_info
            yield Usage(used.prompt_tokens if used else 0, (used and used.completion_tokens) or 0, entered.mixed)

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """Takes over another version of the weights. Answers that go on meanwhile are pre-filled again with it.

        If what the engine computes with then is not what the files hold, the old weights are loaded again.
        """
        if self.models.lora_requests:
            return Promoted(
                0.0, error="adapters are served beside this model: start the server again for other weights"
            )
        try:
            expected = await self._call("read_weights", folder)
        except (OSError, SafetensorError) as error:
            return Promoted(0.0, error=f"the files cannot be read: {error}")
        async with self.gate.closed(DRAIN_SECONDS):
            start = time.monotonic()
            await self.engine.pause_generation(mode="keep", clear_cache=False)
            wrong = await self._swap(folder, expected)
            await self.engine.resume_generation()
            seconds = time.monotonic() - start
            if wrong:
                return Promoted(seconds, error=f"after loading, {wrong} differed from the files")
            self.model = folder
            return Promoted(seconds, self.gate.change_to(weights))

    async def _swap(self, folder: Path, expected: dict[str, int]) -> str | None:
        known = False
        try:
            wrong = mismatch(expected, await self._call("swap_weights", folder))
            if wrong:
                before = await self._call("read_weights", self.model)
                known = mismatch(before, await self._call("swap_weights", self.model)) is None
            # Cached keys and values are of the old weights.
            await self.engine.reset_prefix_cache(reset_running_requests=True)
            known = known or not wrong
        finally:
            if not known:
                # Nobody may be answered with weights that nobody knows. Ray Serve starts the replica again.
                logger.critical("%s: neither the new weights nor the old could be loaded", self.model)
                os._exit(1)
        return wrong

    async def _call(self, method: str, folder: Path) -> dict[str, int]:
        (found,) = await self.engine.collective_rpc(method, args=(str(folder),))
        return found

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`: vLLM's, and whether the model was tuned to chat."""
        listed = await self.models.show_available_models()
        card = listed.data[0].model_dump(include={"id", "object", "created", "max_model_len"})
        return card | {"owned_by": "triptych", "chat": self.chat_tuned}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """The JSON schemas of vLLM's requests."""
        return {name: kind.json_schema(ref_template=REFERENCE) for name, (kind, _) in self.endpoints.items()}

    def live(self) -> str:
        """The version of its weights."""
        return self.gate.version

    async def check_health(self) -> None:
        """Raises when the engine cannot answer any more."""
        await self.engine.check_health()

    def requests(self) -> int:
        """How many requests are waiting or running; each of `n` answers counts."""
        return self.engine.output_processor.get_num_unfinished_requests()

    def close(self) -> None:
        """Ends the engine's own process."""
        self.engine.shutdown()


def _reply(answer: BaseModel, weights: str | None = None) -> Reply:
    status = answer.error.code if isinstance(answer, ErrorResponse) else HTTPStatus.OK
    return Reply(int(status), answer.model_dump(), weights)


def _explain(error: ValidationError) -> ErrorResponse:
    # `prompt` alone is a union of four types: a wrong one is reported once for every type.
    problems = error.errors(include_url=False, include_input=False)
    causes = [problem.get("ctx", {}).get("error") for problem in problems]
    named = [cause.parameter for cause in causes if isinstance(cause, VLLMValidationError)]
    fields = [str(problem["loc"][0]) for problem in problems if problem["loc"]]
    message = "; ".join(dict.fromkeys(_sentence(problem) for problem in problems[:5]))
    return create_error_response(message, param=next(filter(None, [*named, *fields]), None))


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
