"""Prints what LiteLLM gets from a server: litellm_client.py URL MODEL QUESTION."""

import asyncio
import json
import sys

import litellm
from capital import Capital

url, model, question = sys.argv[1:]
ask = {
    "model": f"openai/{model}",
    "api_base": f"{url}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": question}],
    "temperature": 0,
    "max_tokens": 12,
}
tool = {"type": "function", "function": {"name": "capital", "parameters": Capital.model_json_schema()}}


async def asynchronous() -> str:
    """Returns the text of an asynchronous stream."""
    chunks = await litellm.acompletion(**ask, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


said = litellm.completion(**ask, logprobs=True, top_logprobs=2)
call = litellm.completion(**ask | {"max_tokens": 120}, tools=[tool], tool_choice="required", parallel_tool_calls=False)
form = litellm.completion(**ask | {"max_tokens": 60}, response_format=Capital)
found = {
    "answer": said.choices[0].message.content,
    "logprobs": [one.logprob for one in said.choices[0].logprobs.content],
    "tokens": said.usage.completion_tokens,
    "stream": "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True)),
    "async": asyncio.run(asynchronous()),
    "completion": litellm.text_completion(
        model=f"text-completion-openai/{model}",
        api_base=ask["api_base"],
        api_key="none",
        prompt=question,
        max_tokens=3,
        temperature=0,
    )
    .choices[0]
    .text,
    "parsed": json.loads(form.choices[0].message.content),
    "tool": json.loads(call.choices[0].message.tool_calls[0].function.arguments),
}
print(json.dumps(found))
