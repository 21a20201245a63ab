"""Gathers the uses of vLLM, Ray, PEFT and transformers in this layer that go beyond their documented interfaces.

Read this file first when one of their versions changes (they are pinned in `infra/requirements`): every entry says what
to look at. Libraries that take long to import, and vLLM, which configures the process that imports it, are imported
inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.recipe.base import Lora, TrainingLora
from cluster.run.weight_files import INDEX, WEIGHTS

if TYPE_CHECKING:
    import ray
    from torch import Tensor, nn
    from vllm.config import ModelConfig


# vLLM: scheduling on CPUs
def whole_prompts(context: int, tokens: int) -> dict[str, Any]:
    """Returns arguments of a vLLM engine on CPUs with which no step reads only a part of a prompt.

    After such a part, vLLM 0.32 winds back the random numbers of a request that has a seed, which PyTorch's generators
    on CPUs cannot do ("CPU Generator does not use offset"): the engine would die with all its requests. With another
    version, draw 256 prompts of 150 tokens with a seed and without these arguments; if that works, they can go.

    Args:
        context: the most tokens of a prompt with its completion.
        tokens: the most tokens that a step reads, unless one prompt is longer.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, tokens)}


# vLLM: other weights in a live engine
def load_layerwise(model: Any, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Loads tensors into a model that vLLM serves from, layer by layer, and repacks each layer for its kernels.

    `vllm.model_executor.model_loader.reload` is not part of vLLM's documented interface. An output head that is tied
    to the embeddings is sent no weights, so that vLLM 0.32 leaves the CPU kernel's copy of them as it was; hence the
    repacking at the end. With another version, see whether `vllm.distributed.weight_transfer`'s own engines still call
    these two functions, and whether `live_weight` of a tied head shows the new weights without the repacking.

    The engine must be idle, and has to forget its cached keys and values afterwards. `live_digest` then proves which
    weights the model computes with.

    Args:
        model: the model of vLLM's worker.
        config: vLLM's configuration of it.
        tensors: Hugging Face names and tensors, of the shapes that the model has.
    """
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(model)
    model.load_weights(iter(tensors))
    finalize_layerwise_reload(model, config)
    for head in output_heads(model).values():
        head.quant_method.process_weights_after_loading(head)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Returns vLLM's linear layers by name. With another version, see whether they still derive from `LinearBase`."""
    from vllm.model_executor.layers.linear import LinearBase

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}


def output_heads(model: nn.Module) -> dict[str, Any]:
    """Returns vLLM's output heads by name. With another version, see whether they still are `ParallelLMHead`s."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ParallelLMHead)}


def input_width(layer: Any) -> int:
    """Returns the number of columns of a linear layer's weight, whose own tensor a CPU kernel may have emptied."""
    width: int = layer.input_size_per_partition
    return width


def live_weight(layer: Any, weight: Tensor, columns: slice) -> Tensor:
    """Returns columns of the weight, shaped (outputs, inputs), that a layer of vLLM multiplies with at this moment.

    On CPUs vLLM 0.32 hands a layer's weight to its kernel in a format of the kernel's own and leaves an empty tensor
    behind, so that a checksum of the parameters would say nothing of most of the model. The layer applied to the
    identity gives every weight back exactly: one product with 1, and sums of zeros. With another version, see whether
    `quant_method.apply` still multiplies without a bias.

    Args:
        layer: a linear layer or an output head.
        weight: a tensor of the weight's type and width.
    """
    if weight.device.type != "cpu":
        return weight[:, columns]
    import torch

    with torch.inference_mode():
        product: Tensor = layer.quant_method.apply(layer, torch.eye(weight.shape[1], dtype=weight.dtype)[columns])
        return product.T


# vLLM: engines of several workers, which divide a model's weights (tensor parallelism)
class Division(Enum):
    """The division of a weight among the workers of an engine: each has some of its rows, some of its columns, or a
    copy."""

    ROWS = "rows"
    COLUMNS = "columns"
    COPIES = "copies"


@dataclass(frozen=True)
class TensorParallel:
    """A worker's place among those of its engine, and their process group on CPUs."""

    rank: int
    size: int
    workers: Any


def tensor_parallel() -> TensorParallel:
    """Returns the place of this worker. With another version of vLLM, see whether the group still has a `cpu_group`."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return TensorParallel(group.rank_in_group, group.world_size, group.cpu_group)


def division_of(layer: Any, name: str) -> Division:
    """Says how a parameter of a layer is divided.

    With another version of vLLM, see whether these classes of `vllm.model_executor.layers` still divide so, and whether
    there are others that do.
    """
    from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if getattr(layer, "tp_size", 1) == 1:
        return Division.COPIES
    if isinstance(layer, RowParallelLinear):
        return Division.COLUMNS if name.endswith(".weight") else Division.COPIES
    # An output head is an embedding, for vLLM.
    return Division.ROWS if isinstance(layer, ColumnParallelLinear | VocabParallelEmbedding) else Division.COPIES


def counted_rows(layer: Any, group: TensorParallel) -> slice:
    """Returns the rows of a divided weight that no worker before this one has: where there are more workers than heads
    of keys and values, several hold the same of these."""
    replicas = getattr(layer, "num_kv_head_replicas", 1)
    return slice(layer.num_heads * layer.head_size) if group.rank % replicas else slice(None)


def on_worker_death(llm: Any, callback: Callable[[], None]) -> None:
    """Registers a function that is called when a process of an engine's workers dies.

    Without it, an engine in its caller's own process would notice only at its next step, and its process would go on.
    With another version, see
    `MultiprocExecutor.start_worker_monitor`.
    """
    llm.llm_engine.engine_core.engine_core.model_executor.register_failure_callback(callback)


# Ray
def started(actor: Any) -> ray.ObjectRef:
    """Returns a reference that is ready once a Ray actor has been constructed.

    `__ray_ready__` is a method that Ray gives every actor without documenting it. With another version, see whether
    Ray's own tests of actors still call it.
    """
    reference: ray.ObjectRef = actor.__ray_ready__.remote()
    return reference


# PyTorch
def softmax_backward(gradients: Tensor, probabilities: Tensor) -> Tensor:
    """Computes the gradients with regard to the scores of a softmax over the last dimension: p (g - Σ p g).

    `torch._softmax_backward_data` is what autograd calls, in one kernel. With another version, see whether
    tests/actors/model/attention/test_blockwise.py passes.
    """
    import torch

    return torch._softmax_backward_data(gradients, probabilities, -1, probabilities.dtype)


# transformers: attention
def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Registers an attention function, whose masks are those of PyTorch's.

    The interfaces are documented, `sdpa_mask` in `masking_utils` is not. With another version, see whether it still
    gives masks of four dimensions on as they are (tests/actors/model/attention/test_packed.py).
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def sdpa_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Computes one layer's attention by PyTorch's kernel, as a model without a registered function does."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **settings)


def repeat_heads(tensor: Tensor, times: int) -> Tensor:
    """Repeats heads of keys or values that query heads share. [B, heads, T, D] -> [B, times · heads, T, D]."""
    from transformers.integrations.sdpa_attention import repeat_kv

    return repeat_kv(tensor, times)


# transformers: mixtures of experts
def load_balancing_loss(model: Any) -> Callable[..., Tensor] | None:
    """Returns the function of (router logits, experts, experts of a token, mask) by which a kind of model balances its
    experts; None of a kind that has none, or one with further arguments (Doge).

    It stands in the module of each kind, undocumented. With another version, see whether
    tests/actors/model/test_expert_balance.py passes.
    """
    import inspect
    import sys

    function: Callable[..., Tensor] | None
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    return function if function and len(inspect.signature(function).parameters) == 4 else None


# transformers: GGUF
def forget_quantization(model: Any) -> None:
    """Removes the quantization settings of a model that was read from a GGUF file: with them transformers refuses to
    save it.

    With another version, see in `PreTrainedModel.save_pretrained` what it asks of a quantized model.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


# transformers and PyTorch: models without memory for their weights
@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Puts the parameters of modules that are made in this context on the meta device, but not their buffers: those of
    rotary embeddings are computed when they are made, and are in no file.

    Replaces `nn.Module.register_parameter`, as accelerate's `init_empty_weights` does; for one thread alone.
    """
    from torch import nn

    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def converts_weights(model: Any) -> bool:
    """Says whether transformers renames or joins tensors between a model and its files.

    `transformers.conversion_mapping` is not documented. With another version, see whether `save_pretrained` still asks
    it by `revert_weight_conversion`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def hub_folder(name: str) -> Path | None:
    """Downloads configuration and safetensors of a model on the Hub, unless the cache of this machine has them, and
    returns their folder there; None if there are none.

    With another version, see whether `from_pretrained` still finds files by `transformers.utils.hub.cached_files`.
    """
    from transformers.utils.hub import cached_file, cached_files

    try:
        index = cached_file(name, INDEX, _raise_exceptions_for_missing_entries=False)
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()) if index else {WEIGHTS}
        found = cached_files(name, ["config.json", *sorted(names)])
    except OSError:
        return None
    return Path(found[0]).parent if found else None


# PEFT
def inject_adapters(model: nn.Module, settings: Lora, targets: list[str]) -> None:
    """Puts adapters beside the layers whose names end in `targets`, and freezes everything else.

    With another version, see whether their tensors are still named `<layer>.lora_A.default.weight`, `lora_B` and, with
    DoRA, `lora_magnitude_vector`, and the layer's own `<layer>.base_layer.weight` (actors/model/lora.py).
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, use_rslora=settings.rank_stabilized
    )
    if isinstance(settings, TrainingLora):
        config.lora_dropout, config.use_dora = settings.dropout, settings.dora
    inject_adapter_in_model(config, model)


def adapter_config(model: Any) -> Any:
    """Returns the configuration of the adapters. PEFT leaves it with the model under the name of the adapter."""
    return model.peft_config["default"]


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Switches adapters off for as long as the context lasts.

    `BaseTunerLayer` is the class of PEFT's layers and not documented. With another version, see how
    `PeftModel.disable_adapter` finds them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


# Ray Train: the network interface of its workers
def interface_config() -> Any:
    """Returns a configuration of PyTorch on Ray Train with which every worker first chooses its network interface.

    `TorchConfig.backend_cls` and `Backend.on_start` are developers' interfaces: with another version, see whether
    `on_start` still calls `torch.distributed.init_process_group` on the workers, and `worker_group.execute` still runs
    a function on each.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    from cluster.runtime.network import use_node_interface

    class InterfaceBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(use_node_interface)
            super().on_start(worker_group, backend_config)

    class InterfaceConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[_TorchBackend]:
            return InterfaceBackend

    return InterfaceConfig()
