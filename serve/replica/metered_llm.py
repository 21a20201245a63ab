"""vLLM's asynchronous engine with a count of the tokens that it computes for each request, cancelled ones included, and
with a limit on the white space of forced tool calls.

vLLM reports the usage of a request with its last output, which a cancelled request never gets, and with
`stream_interval` or `n` its outputs lag behind the tokens that have been computed.
"""

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.async_llm import AsyncLLM

from serve.compat.vllm_engine import limit_white_space
from serve.transport.messages import TALLY, Tally


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
