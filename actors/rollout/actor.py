"""Runs a vLLM engine in a process of its own, which draws completions and scores tokens."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import save_file

from actors.compat import on_worker_death, whole_prompts
from actors.model.chat import Chat
from actors.model.tokenizer import end_token_ids
from actors.rollout.engine import CPU_SEQUENCES, GPU_SEQUENCES, SharedEngine
from actors.rollout.environment import MultiTurnRunner, MultiTurnSettings
from actors.rollout.weights import digest, unpack
from actors.types import Prompt, RolloutId, Sample, Sampling
from cluster.recipe.base import Precision
from cluster.runtime.plan import Allocation

# vLLM touches all of the key-value cache at once, so that all of it takes memory; if it is short, sequences wait.
_MAX_CPU_CACHE_BYTES = 1 << 30
# The most tokens that a step reads on CPUs: vLLM's own default.
_STEP_TOKENS = 4096
# Seconds between two reports of progress of an actor that draws.
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class EngineSettings:
    """Settings with which engines start.

    Attributes:
        model: a Hugging Face model directory with its tokenizer.
        context: the most tokens of a prompt and its completion.
        seed: seeds draws that have no seed of their own; every actor adds its number.
        allocation: the resources of one engine. CPUs compute in float32, as the learner does, to about 1e-6; GPUs in
            bfloat16.
        multi_turn: continues completions as conversations of several turns, if it is given.
    """

    model: Path
    context: int
    seed: int
    allocation: Allocation
    multi_turn: MultiTurnSettings | None = None

    @property
    def sequences(self) -> int:
        """The completions that an engine decodes at once."""
        return GPU_SEQUENCES if self.allocation.gpus else CPU_SEQUENCES

    @property
    def precision(self) -> Precision:
        """The element type that the engine computes in, as vLLM names it."""
        return "bfloat16" if self.dtype is torch.bfloat16 else "float32"

    @property
    def dtype(self) -> torch.dtype:
        """The element type that the engine computes in, as PyTorch names it."""
        return element_type(self.allocation)


class RolloutActor:
    """One engine. `Fleet` runs it as a Ray actor that answers several calls of `generate` at once.

    `pull_weights` in the midst of them changes the weights between two tokens (PipelineRL, Piché et al. 2025): every
    token carries the version that drew it, and the tokens before the change are read again with the new weights.
    """

    def __init__(self, engine: EngineSettings, number: int) -> None:
        # vLLM takes seconds to import and configures its process: it stays out of the driver's.
        from transformers import AutoTokenizer
        from vllm import LLM

        from actors.rollout.weight_transfer import BACKEND, EXTENSION

        make = partial(
            LLM,
            model=str(engine.model),
            dtype=engine.precision,
            seed=engine.seed + number,
            enforce_eager=not engine.allocation.gpus,
            max_model_len=engine.context,
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": BACKEND},
            worker_extension_cls=EXTENSION,
            **_parallel_settings(engine),
            generation_config="vllm",
            use_tqdm_on_load=False,
            **_memory_settings(engine),
        )
        self._shared = SharedEngine(make)
        self._model, self._context, self._workers = engine.model, engine.context, engine.allocation.workers
        if self._workers > 1:
            # An engine without one of its workers is dead: so is its actor, whose prompts others then answer.
            self._shared.run(on_worker_death, self._shared.llm, partial(os._exit, 1))
        self._tokenizer = AutoTokenizer.from_pretrained(str(engine.model))
        self._ends = sorted(end_token_ids(engine.model, self._tokenizer))
        self._multi_turn = (
            MultiTurnRunner(engine.multi_turn, Chat(self._tokenizer), engine.context) if engine.multi_turn else None
        )
        self._shared.run(self._shared.llm.update_weight_version, "0")

    def ready(self) -> None:
        """Does nothing: Ray answers once the engine has started."""

    def process(self) -> int:
        """Returns the id of the engine's process on its node."""
        return os.getpid()

    def version(self) -> int:
        """Returns the version of the weights in the engine; 0 is that of the model's folder."""
        return int(self._shared.run(self._shared.llm.get_weight_version))

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> Iterator[list[tuple[int, list[Sample]]]]:
        """Draws `sampling.count` completions of every prompt; with an environment, all turns of their conversations.

        With `sampling.seed`, draws depend on it and on the prompt's name and epoch, not on the actor or the batch.

        Yields:
            The samples of the prompts that have been finished since, each with the prompt's place in `prompts`; an
            empty list after `BEAT_SECONDS` without any; nothing while the engine has requests and makes no step.

        Raises:
            ValueError: a prompt is longer than the context, greedy completions are more than one, or the temperature
                is above 2, which vLLM refuses.
        """
        from vllm import TokensPrompt

        requests = [TokensPrompt(prompt_token_ids=prompt.token_ids) for prompt in prompts]
        outputs = self._shared.begin(requests, [self._sampling_params(prompt, sampling) for prompt in prompts])

        # No method is a coroutine function: it would make the class an asynchronous actor for Ray, without threads.
        async def draw_next(prompt: Prompt, own: Sampling) -> Sample:
            request = TokensPrompt(prompt_token_ids=prompt.token_ids)
            output = await self._shared.generate_one(request, self._sampling_params(prompt, own))
            (sample,) = self._samples(prompt, output.outputs)
            return sample

        async def draw(prompt: Prompt, output: Future[Any]) -> list[Sample]:
            samples = self._samples(prompt, (await asyncio.wrap_future(output)).outputs)
            if self._multi_turn is None:
                return samples
            # Each conversation goes on as soon as it has its reply.
            return await self._multi_turn.run(prompt, samples, sampling, draw_next)

        async def start() -> dict[asyncio.Task[list[Sample]], int]:
            pairs = enumerate(zip(prompts, outputs, strict=True))
            return {asyncio.create_task(draw(prompt, output)): index for index, (prompt, output) in pairs}

        with asyncio.Runner() as loop:
            pending, seen = loop.run(start()), self._shared.progress()
            while pending:
                waiting = asyncio.wait(pending, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                done, _ = loop.run(waiting)
                progress = self._shared.progress()
                if done or progress != seen:
                    yield sorted((pending.pop(task), task.result()) for task in done)
                seen = progress

    def score(self, token_ids: list[list[int]], starts: list[int]) -> list[list[float]]:
        """Returns the log-probabilities, at temperature 1, of the tokens of each row from its start to its end.

        Args:
            token_ids: rows of at most the context's length.
            starts: the first token of each row to score, at least 1.
        """
        from vllm import SamplingParams, TokensPrompt

        # The last token is asked for as a completion: a row may then be as long as the context.
        requests = [TokensPrompt(prompt_token_ids=row[:-1]) for row in token_ids]
        params = [SamplingParams(max_tokens=1, prompt_logprobs=0, logprob_token_ids=[row[-1]]) for row in token_ids]
        scores = []
        for row, start, output in zip(token_ids, starts, self._shared.generate(requests, params), strict=True):
            before_last = [output.prompt_logprobs[i][row[i]].logprob for i in range(start, len(row) - 1)]
            scores.append([*before_last, output.outputs[0].logprobs[0][row[-1]].logprob])
        return scores

    def pull_weights(
        self, version: int, refs: list[ray.ObjectRef], dtype: torch.dtype, adapters: bool = False
    ) -> dict[str, int]:
        """Loads a version of the weights from the object store.

        Args:
            version: the version that tokens carry from now on.
            refs: one reference as of `weights.publish`, in a list so that it is fetched here and not before the call.
            dtype: the tensors' element type.
            adapters: whether the tensors are adapters, to be merged into the weights of version 0.

        Returns:
            The digest of the version's stripe of the weights that the engine then computes with; with adapters, the
            digest of all adapters that arrived.

        Raises:
            RuntimeError: the engine could not be brought to the new weights.
        """
        base = self._model if adapters else None
        update = {"refs": refs, "version": version, "dtype": dtype, "base": base}
        if self._workers == 1:
            self._shared.load(partial(self._update_weights, update))
        else:
            with _as_file(refs, dtype) as file:
                self._shared.load(partial(self._update_weights, update | {"refs": [], "file": file}))
        if not adapters:
            return self.checksums(version)
        (packed,) = ray.get(refs)
        return digest(unpack(packed, dtype).items())

    def _update_weights(self, update: dict[str, Any]) -> None:
        llm = self._shared.llm
        llm.start_weight_update()
        llm.update_weights({"update_info": update})
        llm.finish_weight_update(str(update["version"]))
        # Cached keys and values are of the old weights.
        if not llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("the engine refused to forget the keys and values of the old weights")

    def checksums(self, stripe: int | None = None) -> dict[str, int]:
        """Returns `weights.live_digest` of the engine's weights, or of a stripe of their columns."""
        found: list[dict[str, int]] = self._shared.run(self._shared.llm.collective_rpc, "live_digest", None, (stripe,))
        return found[0]

    def _sampling_params(self, prompt: Prompt, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        try:
            return SamplingParams(
                n=sampling.count,
                temperature=sampling.temperature,
                max_tokens=min(sampling.max_tokens, self._context - len(prompt.token_ids)),
                stop_token_ids=self._ends,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
                seed=None if sampling.seed is None else prompt.draw_seed(sampling.seed),
                detokenize=False,
            )
        except VLLMValidationError as error:
            raise ValueError(str(error)) from error

    def _samples(self, prompt: Prompt, completions: list[Any]) -> list[Sample]:
        texts = self._tokenizer.batch_decode([list(done.token_ids) for done in completions], skip_special_tokens=True)
        raw = self._tokenizer.batch_decode(
            [_without_end(done) for done in completions], clean_up_tokenization_spaces=False
        )
        return [
            Sample(
                id=RolloutId(prompt.epoch, prompt.id, done.index),
                token_ids=list(done.token_ids),
                logprobs=[step[token].logprob for step, token in zip(done.logprobs, done.token_ids, strict=True)],
                weight_versions=[
                    int(span.version) for span in done.weight_versions for _ in range(span.start, span.end)
                ],
                finish_reason=done.finish_reason,
                text=text,
                raw_text=raw_text,
            )
            for done, text, raw_text in zip(completions, texts, raw, strict=True)
        ]


def _without_end(done: Any) -> list[int]:
    """Returns the tokens of a completion, without the one that ended it."""
    ids = list(done.token_ids)
    return ids[:-1] if done.finish_reason == "stop" else ids


def element_type(allocation: Allocation) -> torch.dtype:
    """Returns the element type that an engine with these resources computes in."""
    return torch.bfloat16 if allocation.gpus else torch.float32


def engine_env_vars(allocation: Allocation) -> dict[str, str]:
    """Returns the environment variables of an engine's process, and of its workers'."""
    return {
        "OMP_NUM_THREADS": str(max(1, allocation.threads // allocation.workers)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _parallel_settings(engine: EngineSettings) -> dict[str, Any]:
    """Returns settings of an engine of several workers, as children of the actor, whose devices they then have; Ray
    would place them elsewhere."""
    if engine.allocation.workers == 1:
        return {}
    return {"tensor_parallel_size": engine.allocation.workers, "distributed_executor_backend": "mp"}


@contextmanager
def _as_file(refs: list[ray.ObjectRef], dtype: torch.dtype) -> Iterator[Path]:
    """Copies tensors of the object store to a file, in memory where there is room, for processes without Ray."""
    (packed,) = ray.get(refs)
    tensors = unpack(packed, dtype)
    shared = Path("/dev/shm")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    in_memory = shared.is_dir() and shutil.disk_usage(shared).free > 2 * size
    with tempfile.TemporaryDirectory(prefix="triptych-weights-", dir=shared if in_memory else None) as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(tensors, file)
        yield file


def _memory_settings(engine: EngineSettings) -> dict[str, Any]:
    from transformers import AutoConfig

    if engine.allocation.gpus:
        return {"gpu_memory_utilization": 0.9 * min(engine.allocation.gpus, 1.0)}
    config = AutoConfig.from_pretrained(engine.model)
    token = 2 * config.num_hidden_layers * config.hidden_size * engine.dtype.itemsize // engine.allocation.workers
    # One more than are answered at once: vLLM keeps a block for itself.
    cache = min(_MAX_CPU_CACHE_BYTES, token * engine.context * (CPU_SEQUENCES + 1))
    return {
        "max_num_seqs": CPU_SEQUENCES,
        "kv_cache_memory_bytes": cache,
        **whole_prompts(engine.context, _STEP_TOKENS),
    }
