"""Prints what LangChain gets from a server: langchain_client.py URL MODEL QUESTION."""

import asyncio
import json
import sys

from capital import Capital
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

url, model, question = sys.argv[1:]
options = {"model": model, "base_url": f"{url}/v1", "api_key": SecretStr("none"), "temperature": 0}
chat = ChatOpenAI(**options, max_tokens=12)
longer = ChatOpenAI(**options, max_tokens=200)


async def asynchronous() -> str:
    """Returns the text of an asynchronous stream."""
    return "".join([chunk.text async for chunk in chat.astream(question)])


said = chat.bind(logprobs=True).invoke(question)
call = longer.bind_tools([Capital], tool_choice="Capital").invoke(question)
found = {
    "answer": said.content,
    "logprobs": [one["logprob"] for one in said.response_metadata["logprobs"]["content"]],
    "tokens": said.usage_metadata["output_tokens"],
    "stream": "".join(chunk.text for chunk in chat.stream(question)),
    "async": asyncio.run(asynchronous()),
    "batch": [one.content for one in chat.batch([question, question])],
    "responses": ChatOpenAI(**options, max_tokens=12, use_responses_api=True).invoke(question).text,
    "completion": OpenAI(**options, max_tokens=3).invoke(question),
    "parsed": longer.with_structured_output(Capital, method="json_schema").invoke(question).model_dump(),
    "called": longer.with_structured_output(Capital, method="function_calling").invoke(question).model_dump(),
    "tool": call.tool_calls[0]["args"],
}
print(json.dumps(found))
