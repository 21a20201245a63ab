"""Digests of weights, and tensors on their way through the object store."""

import pytest
import ray
import torch
from torch import Tensor
from transformers import ApertusConfig, ApertusForCausalLM

from actors.model.sharding.fsdp import parameters
from actors.rollout.weights import digest, mismatch, publish, stripes, unpack

PARENT = "model.layers.0.self_attn"


def projections() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{PARENT}.{name}_proj.weight": torch.randn(rows, 16, generator=generator)
        for name, rows in (("q", 16), ("k", 8), ("v", 8))
    }


def test_digest_is_the_same_when_rows_are_joined_or_padded():
    state = projections()
    joined = torch.cat([*state.values(), torch.zeros(5, 16)])
    assert digest(state.items()) == digest([(f"{PARENT}.qkv_proj.weight", joined)])
    biases = {name.replace("weight", "bias"): tensor[:, 0] for name, tensor in state.items()}
    assert digest(biases.items()) == digest([(f"{PARENT}.qkv_proj.bias", torch.cat(list(biases.values())))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digest_notices_one_bit_two_columns_exchanged_and_a_missing_matrix(dtype: torch.dtype):
    state = {name: tensor.to(dtype) for name, tensor in projections().items()}
    before = digest(state.items())
    for name, tensor in state.items():
        bits = tensor.view(torch.int32 if dtype is torch.float32 else torch.int16).clone()
        bits[3, 5] ^= 1
        assert digest({**state, name: bits.view(dtype)}.items()) != before
        assert digest({**state, name: tensor[:, [1, 0, *range(2, 16)]]}.items()) != before
        assert digest({other: state[other] for other in state if other != name}.items()) != before
    assert digest({name: tensor.clone() for name, tensor in state.items()}.items()) == before


def test_digest_takes_both_zeros_for_one():
    assert digest([("a.b.weight", torch.tensor([[0.0, 1.0]]))]) == digest([("a.b.weight", torch.tensor([[-0.0, 1.0]]))])


def test_a_stripe_is_a_sixteenth_of_the_columns_and_sixteen_are_all_of_them():
    matrix, vector = torch.arange(2.0 * 40).reshape(2, 40), torch.arange(3.0)
    parts = [dict(stripes([("a.b.weight", matrix), ("a.c.weight", vector)], version)) for version in range(7, 23)]
    columns = sorted(int(column) for part in parts for column in part["a.b.weight"][0])
    assert columns == list(range(40))
    assert {part["a.b.weight"].shape[1] for part in parts} == {2, 3}
    assert all(torch.equal(part["a.c.weight"], vector.reshape(3, 1)) for part in parts)
    assert all(
        torch.equal(whole.reshape(-1), tensor.reshape(-1))
        for (_, whole), tensor in zip(
            stripes([("a.b.weight", matrix), ("a.c.weight", vector)], None), (matrix, vector), strict=True
        )
    )


def test_a_stripe_of_joined_rows_is_that_of_each_and_other_weights_show_in_every_one():
    state = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in projections().items()}
    joined = [(f"{PARENT}.qkv_proj.weight", torch.cat(list(state.values())))]
    changed = {name: tensor + 1e-6 for name, tensor in state.items()}
    one = next(iter(state))
    for version in range(16):
        expected = digest(stripes(state.items(), version))
        assert digest(stripes(joined, version)) == expected
        assert digest(stripes({**state, one: changed[one]}.items(), version)) != expected
        assert digest(stripes({**state, one: state[one].roll(1, dims=1)}.items(), version)) != expected
        bit = state[one].clone()
        bit[3, 5] += 1
        assert (digest(stripes({**state, one: bit}.items(), version)) == expected) == (version != 5)


def test_mismatch_names_the_modules():
    assert mismatch({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert mismatch({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3}) == "b, c"
    assert mismatch({str(i): i for i in range(5)}, {}) == "0, 1, 2 and 2 more"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_out_of_the_object_store_as_they_went_in(ray_session: None, dtype: torch.dtype):
    state = {**projections(), "model.norm.weight": torch.randn(16)}
    weights = publish(3, state, dtype)
    received = unpack(ray.get(weights.ref), weights.dtype)
    assert received.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(received[name], tensor.to(dtype), rtol=0, atol=0)
    assert mismatch(weights.digests, digest(stripes(received.items(), 3))) is None


def test_engines_are_sent_parameters_once_each_and_no_buffers():
    """An Apertus has constants of its activation among its buffers; in vLLM, they are no weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = ApertusConfig(vocab_size=64, num_hidden_layers=1, tie_word_embeddings=True, pad_token_id=0, **sizes)
    model = ApertusForCausalLM(config)
    sent = parameters(model)
    left_out = model.state_dict().keys() - sent.keys()
    assert {name.rpartition(".")[2] for name in left_out} == {"weight", "beta", "eps"}
    assert "lm_head.weight" in left_out
    assert "model.layers.0.mlp.act_fn.alpha_p" in sent
    digest(stripes(sent.items(), 3))


def test_a_number_is_hashed_as_a_vector_of_one():
    number = torch.tensor(0.5)
    assert digest([("a.b.scale", number)]) == digest([("a.b.scale", number.reshape(1))])
    (part,) = stripes([("a.b.scale", number)], 3)
    assert part[1].shape == (1, 1)
