"""Prints what OpenAI's client gets from a server: openai_client.py URL MODEL QUESTION."""

import asyncio
import json
import sys

import openai
from capital import Capital

url, model, question = sys.argv[1:]
server = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
client = openai.OpenAI(**server)
ask = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
brief = ask | {"max_tokens": 12}


async def asynchronous() -> str:
    """Returns the text of an asynchronous stream."""
    chunks = await openai.AsyncOpenAI(**server).chat.completions.create(**brief, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


def streamed() -> str:
    """Returns the text of a stream of events."""
    with client.chat.completions.stream(**brief) as events:
        return "".join(event.delta for event in events if event.type == "content.delta")


def responses() -> str:
    """Returns the text of a stream of the Responses API."""
    with client.responses.stream(model=model, input=question, temperature=0, max_output_tokens=12) as events:
        return events.get_final_response().output_text


said = client.chat.completions.create(**brief, logprobs=True, top_logprobs=2)
tool = openai.pydantic_function_tool(Capital)
calling = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
call = client.chat.completions.parse(**ask, **calling, max_tokens=120)
form = client.responses.parse(model=model, input=question, max_output_tokens=60, text_format=Capital)
found = {
    "answer": said.choices[0].message.content,
    "logprobs": [one.logprob for one in said.choices[0].logprobs.content],
    "tokens": said.usage.completion_tokens,
    "stream": streamed(),
    "async": asyncio.run(asynchronous()),
    "responses": responses(),
    "completion": client.completions.create(model=model, prompt=question, max_tokens=3, temperature=0).choices[0].text,
    "parsed": client.chat.completions.parse(**ask, max_tokens=60, response_format=Capital)
    .choices[0]
    .message.parsed.model_dump(),
    "responses parsed": form.output_parsed.model_dump(),
    "tool": call.choices[0].message.tool_calls[0].function.parsed_arguments.model_dump(),
}
print(json.dumps(found))
