"""A model in a vLLM engine, behind vLLM's own OpenAI serving classes, whose weights can change while it serves."""

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import GenerationError, VLLMError, VLLMValidationError

from actors.compat import whole_prompts
from cluster.recipe.serve import Engine, Serve
from cluster.run.versions import Version
from cluster.runtime.plan import Allocation
from serve.compat.vllm_engine import (
    abort_unfinished,
    embeddings,
    end_token_ids,
    max_lora_rank,
    require_quantization,
    template_variables,
    unfinished_requests,
)
from serve.compat.vllm_openai import (
    blank_request,
    dumped,
    error_response,
    load_beside,
    openai_serving,
    parser_options,
    status_of,
    token_counts,
    tool_parser_for,
)
from serve.errors import RequestError
from serve.http.openapi import REFERENCE
from serve.replica.async_llm import start_engine
from serve.replica.engine_stats import state_of
from serve.replica.lora import adapter_rank
from serve.replica.request_bounds import RequestBounds, forced_form, longest_token, too_many_tokens
from serve.replica.weight_swap import InflightRequest, WeightSwapGate, digest_files, swap_weights
from serve.transport.messages import (
    TALLY,
    CompleteResponse,
    Endpoint,
    EngineState,
    Part,
    PromotionResult,
    ResponseStart,
    Tally,
    Usage,
)

logger = logging.getLogger("ray.serve")

# Resident from the start, because vLLM fills its cache with zeros. It holds 43,000 tokens of a 2.5M model (4 layers,
# width 192, float32): 170 full conversations of 256 tokens.
CPU_CACHE_BYTES = 256 << 20
# vLLM's default on CPUs.
STEP_TOKENS = 2048
CHAT_ENDPOINTS: frozenset[Endpoint] = frozenset({"chat/completions", "responses", "messages"})
NOT_CHAT_TUNED = (
    "this model was not tuned to chat: its answers may be empty or never end; /v1/completions has it continue a text"
)
# The seconds that a change of weights waits for the answers in progress.
DRAIN_SECONDS = 0.5


def engine_arguments(
    model: Path, context: int, allocation: Allocation, settings: Engine = Engine(), reasoning_parser: str | None = None
) -> AsyncEngineArgs:
    """Returns vLLM's arguments for a model. On CPUs it computes in float32 and eagerly: compiling a small model takes
    longer than it saves.

    Raises:
        UserError: vLLM has no such method of quantization.
    """
    if settings.quantization:
        require_quantization(settings.quantization)
    speculation = settings.speculative_config
    arguments = AsyncEngineArgs(
        model=str(model),
        max_model_len=context,
        disable_log_stats=True,
        enable_prefix_caching=settings.enable_prefix_caching,
        quantization=settings.quantization,
        speculative_config={"method": "ngram", **speculation.model_dump()} if speculation else None,
        # Without it models write white space between the parts of JSON until their tokens are used up.
        structured_outputs_config=StructuredOutputsConfig(
            backend="xgrammar", disable_any_whitespace=True, reasoning_parser=reasoning_parser or ""
        ),
        worker_extension_cls="serve.replica.weight_swap.WeightReloadExtension",
        **({} if allocation.gpus else whole_prompts(context, STEP_TOKENS)),
    )
    if allocation.gpus:
        arguments.gpu_memory_utilization = 0.9 * min(allocation.gpus, 1.0)
        arguments.tensor_parallel_size = max(1, int(allocation.gpus))
    else:
        arguments.dtype = "float32"
        arguments.enforce_eager = True
        arguments.kv_cache_memory_bytes = CPU_CACHE_BYTES
    return arguments


def is_chat_tuned(tokenizer: PreTrainedTokenizerBase, end_ids: set[int]) -> bool:
    """Returns whether a model ends its turns: its template closes a turn with a token that ends generation."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return not end_ids.isdisjoint(tokenizer.apply_chat_template(turns, return_dict=False))


class VllmEngine:
    """A model as a `ServedModel`: answers OpenAI requests. Has to be made inside a running event loop.

    Args:
        name: the name that clients use.
        version: its directory and the version of its weights.
        context: the most tokens of a request, prompt and answer together.
        allocation: its resources.
        thread: the thread in which it computes if it has no GPU.
        section: the recipe's section, for the settings of the engine and the parsers of its answers.
        adapters: the folders of the adapters that it also answers with, by their names.

    Raises:
        UserError: vLLM has no such parser or quantization, or supports no rank as large as an adapter's.
    """

    def __init__(
        self,
        name: str,
        version: Version,
        context: int,
        allocation: Allocation,
        thread: ThreadPoolExecutor,
        section: Serve,
        adapters: Mapping[str, Path],
    ) -> None:
        self.folder = version.folder
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        tools = section.tool_parser
        if tools == "auto":
            tools = tool_parser_for(tokenizer.chat_template, tokenizer.get_vocab())
        parsers = parser_options(tools, section.reasoning_parser)
        self.gate = WeightSwapGate(version.weights)
        arguments = engine_arguments(self.folder, context, allocation, section.engine, section.reasoning_parser)
        if adapters:
            # One more than there are: while an adapter is replaced, both of its versions answer.
            arguments.enable_lora, arguments.max_loras = True, len(adapters) + 1
            arguments.max_lora_rank = max_lora_rank(max(map(adapter_rank, adapters.values())))
        self.engine = start_engine(arguments, allocation, thread)
        self.chat_tuned = is_chat_tuned(tokenizer, end_token_ids(self.engine))
        variables = template_variables(tokenizer.chat_template)
        unforced = too_many_tokens(tokenizer, embeddings(self.engine))
        self.bounds = RequestBounds(context, longest_token(tokenizer), variables, unforced)
        self.openai = openai_serving(self.engine, name, adapters, parsers)
        self._fields: dict[Endpoint, set[str]] = {}

    async def load_adapters(self) -> None:
        """Loads the adapters, after which requests may name them.

        Raises:
            ValueError: one does not fit the model.
        """
        await self.openai.models.init_static_loras()

    async def load_adapter(self, name: str, folder: Path) -> PromotionResult:
        """Loads an adapter for new requests that name it; those in progress end with the one that they began with."""
        async with self.gate.closed(DRAIN_SECONDS):
            start = time.monotonic()
            error = await load_beside(self.openai, name, folder)
            return PromotionResult(time.monotonic() - start, error=error)

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Yields a `ResponseStart`, then one `CompleteResponse`, or a stream's server-sent events and their `Usage`.

        Closing it aborts the request.
        """
        if endpoint not in self.openai.handlers:
            message = "this model writes and does not score; name a reward model"
            yield _reply(error_response(message, param="model"))
            return
        try:
            self.bounds.check(endpoint, body)
        except RequestError as error:
            yield CompleteResponse(error.status_code, error.body)
            return
        try:
            async with self.gate.request() as request:
                note = "" if self.chat_tuned or endpoint not in CHAT_ENDPOINTS else NOT_CHAT_TUNED
                yield ResponseStart(request.versions[0], self._unknown_fields(endpoint, body), note)
                async with aclosing(self._parts(endpoint, body, request)) as parts:
                    async for part in parts:
                        yield part
        finally:
            if self.gate.is_empty and (left := await abort_unfinished(self.engine)):
                logger.warning("aborted %d requests that vLLM kept of clients that had gone", left)

    def _unknown_fields(self, endpoint: Endpoint, body: dict[str, Any]) -> list[str]:
        if endpoint not in self._fields:
            self._fields[endpoint] = known_fields(self.openai.handlers[endpoint][0].json_schema())
        known = self._fields[endpoint]
        return sorted(set(body) - known) if known else []

    async def _parts(self, endpoint: Endpoint, body: dict[str, Any], request: InflightRequest) -> AsyncGenerator[Part]:
        request_type, handler = self.openai.handlers[endpoint]
        http, tally = blank_request(), TALLY.get(Tally())
        try:
            answer = await handler(_validated(request_type, body), http)
        except ValidationError as error:
            yield _reply(_explain(error))
        except GenerationError as error:
            form = forced_form(body)
            yield _reply(error_response(f"{form}: no answer can follow it", form) if form else error_response(error))
        except (VLLMError, TemplateError, ValueError, TypeError, OverflowError, NotImplementedError) as error:
            yield _reply(error_response(error))
        else:
            if isinstance(answer, BaseModel):
                yield _reply(answer, request.mixed)
                return
            async with aclosing(answer) as events:
                async for event in events:
                    yield event
            read, written = token_counts(http) or (tally.prompt_tokens, tally.completion_tokens)
            yield Usage(read, written, request.mixed)

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """Loads another version of the weights. Answers in progress continue with them; the tokens that they have are
        pre-filled again.

        If the engine then does not compute with the weights of the files, the old ones are loaded again.
        """
        if self.openai.models.lora_requests:
            return PromotionResult(
                0.0, error="adapters are served beside this model: start the server again for other weights"
            )
        try:
            expected = await digest_files(self.engine, folder)
        except (OSError, SafetensorError) as error:
            return PromotionResult(0.0, error=f"the files cannot be read: {error}")
        async with self.gate.closed(DRAIN_SECONDS):
            start = time.monotonic()
            await self.engine.pause_generation(mode="keep", clear_cache=False)
            wrong = await swap_weights(self.engine, folder, expected, self.folder)
            await self.engine.resume_generation()
            seconds = time.monotonic() - start
            if wrong:
                return PromotionResult(seconds, error=f"after loading, {wrong} differed from the files")
            self.folder = folder
            return PromotionResult(seconds, self.gate.set_version(weights))

    async def card(self) -> dict[str, Any]:
        """Returns the model's entry in `/v1/models`: vLLM's, and whether the model was tuned to chat."""
        listed = await self.openai.models.show_available_models()
        card = listed.data[0].model_dump(include={"id", "object", "created", "max_model_len"})
        return card | {"owned_by": "triptych", "chat": self.chat_tuned}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """Returns the JSON schemas of vLLM's requests."""
        return {name: kind.json_schema(ref_template=REFERENCE) for name, (kind, _) in self.openai.handlers.items()}

    def weights_version(self) -> str:
        """Returns the version of its weights."""
        return self.gate.version

    async def check_health(self) -> None:
        """Raises vLLM's error if the engine cannot answer any more."""
        await self.engine.check_health()

    def requests(self) -> int:
        """Returns how many requests wait or run; each of a request's `n` answers counts."""
        return unfinished_requests(self.engine)

    def engine_state(self) -> EngineState:
        """Returns the state of its engine."""
        return state_of(self.engine)

    def close(self) -> None:
        """Ends the engine's own process, if it has one."""
        self.engine.shutdown()


def _reply(answer: BaseModel, weights: str | None = None) -> CompleteResponse:
    return CompleteResponse(status_of(answer), dumped(answer), weights)


def _validated(request_type: TypeAdapter[Any], body: dict[str, Any]) -> Any:
    """Returns a request as vLLM's class for it.

    Raises:
        ValidationError: a field is wrong.
        VLLMError: fields contradict each other.
        ValueError: a field is of a wrong type.
    """
    try:
        return request_type.validate_python(body)
    except (AttributeError, LookupError) as error:
        # vLLM's validators look into values before pydantic has checked their types.
        logger.info("a request was refused", exc_info=error)
        raise ValueError("a field is of a wrong type: /openapi.json has the types") from error


def known_fields(schema: Mapping[str, Any]) -> set[str]:
    """Returns the fields of requests that a JSON schema describes, in all its alternatives; empty if it names none."""
    definitions = schema.get("$defs", {})
    kinds = [definitions.get(kind.get("$ref", "").rpartition("/")[2], kind) for kind in schema.get("anyOf", [schema])]
    return {field for kind in kinds for field in kind.get("properties", {})}


def _explain(error: ValidationError) -> BaseModel:
    # The type of `prompt` alone is a union of four: a wrong prompt is reported once for each.
    problems = error.errors(include_url=False, include_input=False)
    causes = [problem.get("ctx", {}).get("error") for problem in problems]
    named = [cause.parameter for cause in causes if isinstance(cause, VLLMValidationError)]
    fields = [str(problem["loc"][0]) for problem in problems if problem["loc"]]
    message = "; ".join(dict.fromkeys(_sentence(problem) for problem in problems[:5]))
    return error_response(message, param=next(filter(None, [*named, *fields]), None))


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
