"""Tiny models of any kind that transformers has: as its defaults, with small sizes where it has the usual names."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM

# The errors of kinds whose sizes do not fit together: each kind has checks of its own.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)

# Sizes by the names that configurations give them; a kind takes those that its configuration has.
WIDTHS = dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "word_embed_proj_dim"), 64)
WIDTHS |= dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size", "d_ff"), 48)
WIDTHS |= dict.fromkeys(("expert_ffn_hidden_size", "shared_intermediate_size", "ffn_hidden_size"), 48)
DEPTHS = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2)
HEADS = dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2)
HEADS |= {"head_dim": 32, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 16, "rotary_dim": 8}
HEADS |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8)
EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
EXPERTS |= {"num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1}
EXPERTS |= {"first_k_dense_replace": 1, "n_shared_experts": 1, "num_dense_layers": 1}
OTHERS = {"vocab_size": 400, "max_position_embeddings": 128, "n_positions": 128, "sliding_window": 24}
OTHERS |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4, "initializer_range": 0.1}
# Heads of 32, since vLLM has no attention for smaller ones on CPUs.
SIZES: dict[str, Any] = WIDTHS | DEPTHS | HEADS | EXPERTS | OTHERS


# Kinds whose few layers would otherwise not be those of the published models, or that need more than sizes.
MORE: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "codegen": {"n_embd": 64, "n_head": 4, "rotary_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 4},
}


def tiny_model(kind: type) -> Any:
    """Builds a model with random weights that can compute logits.

    Raises:
        one of FAILURES: the kind does not take these sizes.
    """
    failure: Exception | None = None
    # Some kinds derive sizes that are None, others need them.
    for needed in (False, True):
        try:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_tiny_config(kind, needed))
            with torch.no_grad():
                model(input_ids=torch.arange(5, 13).unsqueeze(0), use_cache=False)
            return model
        except FAILURES as error:
            failure = error
    assert failure
    raise failure


def _tiny_config(kind: type, needed: bool) -> Any:
    usual = kind()
    names = {name for name in SIZES if hasattr(usual, name) and (needed or getattr(usual, name) is not None)}
    names -= {name for name in names if isinstance(getattr(kind, name, None), property)}
    if "qk_rope_head_dim" in names:
        # With multi-head latent attention it is that of the rotated part.
        names.discard("head_dim")
    more = MORE.get(kind.model_type, {})  # type: ignore[attr-defined]
    return kind(**{name: SIZES[name] for name in names} | more)
