"""The uses of vLLM and Ray Serve on this floor that are private, or that change between versions of the two.

Written for vLLM 0.32 and Ray 2.60. After an upgrade, check this file from top to bottom: each function says what to
look at. Two classes depend on vLLM's private parts as a whole and have files of their own:
`serve.replica.vllm_in_process.ThreadedCore` and `serve.replica.weight_swap.WeightReloadExtension`.

Importing this file does not import vLLM, which costs 15 s of CPU time: the gateway needs the part on Ray Serve only.
"""

import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import ray
from pydantic import BaseModel, TypeAdapter
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from cluster.errors import UserError
from cluster.runtime.plan import Allocation
from serve.transport.messages import Endpoint

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vllm.config.lora import MaxLoRARanks
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM


def is_serve_running() -> bool:
    """Tells whether the cluster has a controller of Ray Serve, without starting one.

    Look at `SERVE_CONTROLLER_NAME` and `SERVE_NAMESPACE` in `ray.serve._private.constants`.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def is_client_connection() -> bool:
    """Tells whether this process uses a cluster from outside, by Ray's client (`ray.util.client`)."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def start_application(app: serve.Application, name: str) -> None:
    """Has Ray Serve start an application, and returns before it runs.

    Look at `run_many`, a developer API: `serve.run` waits until every deployment is ready, without a deadline.
    """
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    target = serve.RunTarget(app, name, None, logging_config=quiet)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def listen_on_node_address() -> None:
    """Has this replica's gRPC server, which Ray Serve starts after the constructor, listen on the node's address alone.

    Look at `add_port_to_grpc_server` in `ray.serve._private.replica`: it is given all interfaces, without a setting.
    """
    from ray.serve._private import replica

    address = ray.util.get_node_ip_address()
    original = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, place: original(server, place.replace("[::]", address))


def stop_application(name: str, seconds: float) -> bool:
    """Has Ray Serve end an application, and returns whether it has ended within so many seconds.

    Look at `ServeControllerClient.delete_apps`, which waits for the controller without a deadline, and then for 60 s.
    """

    def delete() -> None:
        # A controller or a cluster that is gone has ended the application too.
        with suppress(RayError, RayServeException, TimeoutError):
            serve.delete(name)

    return done_within(delete, seconds)


def done_within(work: Callable[[], None], seconds: float) -> bool:
    """Runs some work in a thread, and returns whether it was done within so many seconds; if not, it goes on alone."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


async def call_every_replica(handle: DeploymentHandle, method: str, *arguments: Any, seconds: float) -> list[Any]:
    """Calls a method of every replica of a deployment; an exception stands for a call that failed.

    Look at `DeploymentHandle.broadcast`, a recent addition to Ray Serve.

    Raises:
        DeploymentUnavailableError: there is no replica.
        TimeoutError: some replica took longer than `seconds`.
    """
    return await handle.broadcast(method, *arguments).results_async(timeout_s=seconds, return_exceptions=True)


def reported_counts(context: AutoscalingContext, metric: str) -> list[float]:
    """Returns what the replicas of a deployment last reported by `record_autoscaling_stats`, one number for each.

    Look at `AutoscalingContext`, an alpha API, and at how Ray Serve finds `record_autoscaling_stats` in a replica.
    """
    return list((context.aggregated_metrics or {}).get(metric, {}).values())


def engine_environment(share: Allocation) -> dict[str, str]:
    """Returns the environment variables that a replica's process needs before vLLM is imported.

    Look at `vllm.envs` for their names and defaults.
    """
    # vLLM's own set-up of logging would close Ray Serve's log of the replica, and a restarted controller takes a
    # replica without one for broken.
    common = {"OMP_NUM_THREADS": str(share.threads), "VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if share.gpus:
        return common
    # Without a worker process of vLLM's, and with engines that share the cores instead of each binding all of them.
    return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


# It would override the size of the cache that the engine's arguments set.
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def parser_options(tools: str | None, reasoning: str | None) -> dict[str, Any]:
    """Returns the keyword arguments for vLLM's serving classes with which a model calls tools and reasons.

    Look at `ToolParserManager` and `ReasoningParserManager`, and at the arguments of `OpenAIServingChat` and
    `OnlineRenderer`.

    Args:
        tools: vLLM's name for the format of tool calls; None for a model without.
        reasoning: vLLM's name for the format of reasoning; None for a model without.

    Raises:
        UserError: vLLM has no parser of such a name.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    options: dict[str, Any] = {}
    if tools is not None:
        _require("serve.tool_parser", tools, ToolParserManager.list_registered())
        # The arguments of every call follow its schema, also where the client did not set `strict`.
        options |= {"enable_auto_tools": True, "tool_parser": tools, "tool_strict_level": "parameter"}
    if reasoning is not None:
        _require("serve.reasoning_parser", reasoning, ReasoningParserManager.list_registered())
        options["reasoning_parser"] = reasoning
    return options


def limit_white_space(parameters: "SamplingParams") -> None:
    """Allows one white-space character at a time between the parts of JSON in a structural tag, as a forced tool call
    has. Without a limit, models write white space until their tokens are used up.

    Look at `disable_any_whitespace` in vLLM's `backend_xgrammar`, which leaves structural tags out, and at
    `JSONSchemaFormat` of xgrammar, where 1 is the smallest limit.
    """
    form = parameters.structured_outputs
    if form is None or form.structural_tag is None:
        return
    try:
        tag = json.loads(form.structural_tag)
    except ValueError:
        # vLLM says what is wrong with a client's own structural tag.
        return
    pending = [tag]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            if part.get("type") == "json_schema" and part.get("style", "json") == "json":
                part["max_whitespace_cnt"] = part.get("max_whitespace_cnt") or 1
            # A schema may have a property with the name of a format.
            pending += [value for name, value in part.items() if name != "json_schema"]
    form.structural_tag = json.dumps(tag)


def require_quantization(name: str) -> None:
    """Checks that vLLM has a method of quantization. Look at `QuantizationMethods`.

    Raises:
        UserError: it has none of this name.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    _require("serve.engine.quantization", name, QUANTIZATION_METHODS)


def _require(key: str, name: str, known: Iterable[str]) -> None:
    if name not in (names := sorted(known)):
        raise UserError(f"{key}: vLLM has no {name!r}; it has {', '.join(names)}")


def template_variables(template: str | Mapping[str, str] | None) -> set[str]:
    """Returns the names that a tokenizer's chat template, or any of its several, reads from a request.

    Look at `resolve_chat_template_kwargs` in `vllm.renderers.hf`, which also lets the parameters of
    `apply_chat_template` pass, such as `padding` and `max_length`.
    """
    from vllm.renderers.hf import _resolve_chat_template_kwargs

    templates = template.values() if isinstance(template, Mapping) else [template] if template else []
    return {name for one in templates for name in _resolve_chat_template_kwargs(one)}


def max_lora_rank(rank: int) -> "MaxLoRARanks":
    """Returns the smallest of the ranks that vLLM reserves memory for that is enough for adapters of a rank.

    Look at `MaxLoRARanks`.

    Raises:
        UserError: vLLM supports no rank so large.
    """
    from vllm.config.lora import MaxLoRARanks

    supported = get_args(MaxLoRARanks)
    for one in supported:
        if one >= rank:
            return cast(MaxLoRARanks, one)
    raise UserError(f"serve.adapters: vLLM takes ranks of {max(supported)} at most, and one has {rank}")


@contextmanager
def core_client(make: Callable[..., Any]) -> Iterator[None]:
    """Has an `AsyncLLM` that is constructed meanwhile use the engine core that `make` returns.

    Look at `EngineCoreClient.make_async_mp_client` and its call in `AsyncLLM.__init__`. vLLM has no setting for it.
    """
    from vllm.v1.engine.core_client import EngineCoreClient

    original = EngineCoreClient.make_async_mp_client
    EngineCoreClient.make_async_mp_client = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original  # type: ignore[method-assign]


def embeddings(engine: "AsyncLLM") -> int:
    """Returns how many tokens a model can write.

    Look at `vocab_size` of `StructuredOutputBackend`, which is this number.
    """
    return engine.model_config.get_vocab_size()


def end_token_ids(engine: "AsyncLLM") -> set[int]:
    """Returns the tokens at which a model's own generation config ends an answer.

    Look at `ModelConfig.try_get_generation_config`.
    """
    found = engine.model_config.try_get_generation_config().get("eos_token_id", [])
    return {found} if isinstance(found, int) else set(found)


def unfinished_requests(engine: "AsyncLLM") -> int:
    """Returns how many requests wait or run in an engine; each of a request's `n` answers counts.

    Look at `AsyncLLM.output_processor`, a private attribute in all but name.
    """
    return engine.output_processor.get_num_unfinished_requests()


async def abort_unfinished(engine: "AsyncLLM") -> int:
    """Aborts all requests of an engine that nobody waits for, and returns how many those were.

    `AsyncLLM.generate` does not abort a request whose caller is cancelled while it is handed to the engine: look there
    whether `q` is still None then. Such a request would count as waiting for ever.
    """
    left = list(engine.output_processor.request_states)
    if left:
        await engine.abort(left, internal=True)
    return len(left)


Handler = Callable[[Any, Request], Awaitable["AsyncGenerator[str, None] | BaseModel"]]


@dataclass(frozen=True)
class OpenAIServing:
    """vLLM's OpenAI serving classes over one engine.

    Attributes:
        models: vLLM's registry of the model and its adapters.
        handlers: for every endpoint, the type of its requests and the coroutine that answers them.
    """

    models: "OpenAIServingModels"
    handlers: dict[Endpoint, tuple[TypeAdapter[Any], Handler]]


def openai_serving(
    engine: "AsyncLLM", name: str, adapters: Mapping[str, Path], tools: Mapping[str, Any]
) -> OpenAIServing:
    """Builds vLLM's OpenAI serving classes, without its HTTP server.

    Look at `vllm.entrypoints.launchers.api_server.app_state`, which builds the same objects: modules and arguments move
    with nearly every version.

    Args:
        engine: the engine that answers.
        name: the name that clients use for the model.
        adapters: the folders of the adapters, by their names. `models.init_static_loras` loads them.
        tools: the result of `parser_options`.
    """
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath, LoRAModulePath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.renderers.online_renderer import OnlineRenderer

    loras = [LoRAModulePath(adapter, str(folder)) for adapter, folder in adapters.items()]
    models = OpenAIServingModels(engine, [BaseModelPath(name=name, model_path=name)], lora_modules=loras or None)
    template: dict[str, Any] = {
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "auto",
    }
    renderer = OnlineRenderer(engine.model_config, engine.renderer, **template, **tools)
    chat = OpenAIServingChat(engine, models, "assistant", online_renderer=renderer, **template, **tools)
    responses = OpenAIServingResponses(engine, models, renderer, **template, **tools)
    messages = AnthropicServingMessages(engine, models, "assistant", online_renderer=renderer, **template, **tools)
    completion = OpenAIServingCompletion(engine, models, online_renderer=renderer, request_logger=None)
    tokens = ServingTokenization(models, renderer, **template)

    async def respond(request: Any, http: Request) -> "AsyncGenerator[str, None] | BaseModel":
        if request.background or request.previous_response_id:
            raise ValueError(
                "this server stores no responses: wait for the answer or stream it in place of `background`, and send "
                "the whole conversation as `input` in place of `previous_response_id`"
            )
        try:
            answer = await responses.create_responses(request, http)
        except (AttributeError, LookupError) as error:
            # Look at `_construct_message_from_response_item`, which takes every part of an earlier answer for a text.
            logger.warning("a request was refused", exc_info=error)
            raise ValueError("input: an item of it is of a kind that no model of this server can read") from error
        return answer if isinstance(answer, BaseModel) else _named_events(answer)

    async def describe_tokenizer(request: Any, http: Request) -> BaseModel:
        del request, http
        described = await tokens.get_tokenizer_info()
        return described.model_copy(
            update={"chat_template": getattr(tokens.renderer.get_tokenizer(), "chat_template", None)}
        )

    handlers: dict[Endpoint, tuple[TypeAdapter[Any], Handler]] = {
        "chat/completions": (TypeAdapter(ChatCompletionRequest), chat.create_chat_completion),
        "completions": (TypeAdapter(CompletionRequest), completion.create_completion),
        "responses": (TypeAdapter(ResponsesRequest), respond),
        "messages": (TypeAdapter(AnthropicMessagesRequest), messages.create_messages),
        "messages/count_tokens": (TypeAdapter(AnthropicCountTokensRequest), messages.count_tokens),
        "tokenize": (TypeAdapter(TokenizeRequest), tokens.create_tokenize),
        "detokenize": (TypeAdapter(DetokenizeRequest), tokens.create_detokenize),
        "tokenizer_info": (TypeAdapter(dict[str, Any]), describe_tokenizer),
    }
    return OpenAIServing(models, handlers)


async def _named_events(events: "AsyncGenerator[Any, None]") -> "AsyncGenerator[str, None]":
    """Encodes the events of the Responses API as server-sent events; look at `responses.api_router` of vLLM."""
    async with aclosing(events):
        async for event in events:
            yield f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"


def blank_request() -> Request:
    """Returns an HTTP request for a handler, which reads no more of it than its state and headers."""
    return Request({"type": "http", "headers": []})


def token_counts(request: Request) -> tuple[int, int] | None:
    """Returns the tokens of the prompt and of the answer of a stream that has ended; None if vLLM does not say, as for
    the Responses API.

    Look at `RequestResponseMetadata` in `vllm.entrypoints.generate.base.protocol`, which vLLM's handlers leave on the
    HTTP request.
    """
    usage = request.state.request_metadata.final_usage_info
    return (usage.prompt_tokens, usage.completion_tokens or 0) if usage else None


def error_response(cause: Exception | str, param: str | None = None) -> BaseModel:
    """Returns vLLM's error for an exception or a message, with the HTTP status that vLLM gives it.

    Look at `vllm.entrypoints.serve.create_error_response`.
    """
    from vllm.entrypoints.serve import create_error_response

    return create_error_response(cause, param=param)


def status_of(answer: BaseModel) -> int:
    """Returns the HTTP status of a handler's answer."""
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    return int(answer.error.code if isinstance(answer, ErrorResponse) else HTTPStatus.OK)


def dumped(answer: BaseModel) -> dict[str, Any]:
    """Returns the JSON of a handler's answer.

    Look at the routers beside the serving classes: they differ in how they write what is not set.
    """
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse, AnthropicMessagesResponse

    without_unset = isinstance(answer, AnthropicMessagesResponse | AnthropicCountTokensResponse)
    return answer.model_dump(mode="json", by_alias=True, exclude_none=without_unset)
