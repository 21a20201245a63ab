"""The uses of vLLM's OpenAI serving classes, which move between its versions."""

import logging
from collections.abc import Awaitable, Callable, Container, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request

from serve.compat.vllm_engine import require_name
from serve.transport.messages import Endpoint

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.v1.engine.async_llm import AsyncLLM

# Parts of templates, and vLLM's name of the parser for their format; the first that is found decides. Formats whose
# mark is a token of its own need that token in the tokenizer: without it vLLM's parser refuses to start.
TOOL_MARKS = (
    ("[TOOL_CALLS]", "mistral", True),
    ("<|python_tag|>", "llama3_json", True),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3", True),
    ("<|tool_calls_section_begin|>", "kimi_k2", True),
    ("<arg_key>", "glm45", True),
    ("<function=", "qwen3_coder", False),
    ("<tool_call>", "hermes", False),
)
# The format for models whose template knows no tools; forced calls follow it in any case.
DEFAULT_TOOLS = "hermes"


def tool_parser_for(template: str | Mapping[str, str] | None, vocabulary: Container[str]) -> str:
    """Returns vLLM's name of the parser for a model's tool calls.

    A template shows the model its own earlier calls, in the format in which it was trained to write them.

    Args:
        template: the model's chat template, or several by name.
        vocabulary: the tokens of its tokenizer.
    """
    text = "\n".join(template.values()) if isinstance(template, Mapping) else template or ""
    for mark, parser, is_token in TOOL_MARKS:
        if mark in text and (not is_token or mark in vocabulary):
            return parser
    return DEFAULT_TOOLS


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
        require_name("serve.tool_parser", tools, ToolParserManager.list_registered())
        # The arguments of every call follow its schema, also where the client did not set `strict`.
        options |= {"enable_auto_tools": True, "tool_parser": tools, "tool_strict_level": "parameter"}
    if reasoning is not None:
        require_name("serve.reasoning_parser", reasoning, ReasoningParserManager.list_registered())
        options["reasoning_parser"] = reasoning
    return options


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


async def load_beside(serving: OpenAIServing, name: str, folder: Path) -> str | None:
    """Loads a version of an adapter, which requests that name the adapter get from now on.

    Requests in progress keep the version that they began with: it has a number of its own in the engine, which removes
    the version that was not used for longest when it lacks room, and reads it again where a request still needs it.
    Blocks of the prefix cache are those of a name and a folder.

    Look at `OpenAIServingModels.load_lora_adapter`, which gives another version of a known name the old number.

    Args:
        serving: the serving classes of the engine.
        name: the adapter's.
        folder: the version's, which no other version has.

    Returns:
        What is wrong, if the adapter does not fit the model; then nothing has changed.
    """
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
    from vllm.lora.request import LoRARequest

    models, beside = serving.models, f"{name}@{folder.name}"
    answer = await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=beside, lora_path=str(folder)))
    if isinstance(answer, ErrorResponse):
        return str(answer.error.message)
    loaded = models.lora_requests.pop(beside)
    models.lora_requests[name] = LoRARequest(name, loaded.lora_int_id, str(folder))
    return None


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
