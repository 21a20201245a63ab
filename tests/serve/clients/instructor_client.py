"""Prints what instructor gets from a server: instructor_client.py URL MODEL QUESTION."""

import asyncio
import json
import sys

import instructor
import openai
from capital import Capital

url, model, question = sys.argv[1:]
server = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
ask = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 120, "max_retries": 0}


def answer(mode: instructor.Mode) -> dict[str, str]:
    """Returns the parsed answer in a mode."""
    client = instructor.from_openai(openai.OpenAI(**server), mode=mode)
    return client.chat.completions.create(**ask, response_model=Capital).model_dump()


async def asynchronous() -> dict[str, str]:
    """Returns the parsed answer of the asynchronous client."""
    client = instructor.from_openai(openai.AsyncOpenAI(**server), mode=instructor.Mode.JSON_SCHEMA)
    return (await client.chat.completions.create(**ask, response_model=Capital)).model_dump()


def streamed() -> dict[str, str | None]:
    """Returns the last of the parts of a stream."""
    client = instructor.from_openai(openai.OpenAI(**server), mode=instructor.Mode.JSON_SCHEMA)
    *_, last = client.chat.completions.create_partial(**ask, response_model=Capital)
    return last.model_dump()


found = {
    "schema": answer(instructor.Mode.JSON_SCHEMA),
    "tools": answer(instructor.Mode.TOOLS),
    "async": asyncio.run(asynchronous()),
    "stream": streamed(),
}
print(json.dumps(found))
