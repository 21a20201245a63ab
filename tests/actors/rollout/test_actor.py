"""A real engine as a rollout actor, against the same model in transformers."""

import itertools
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from transformers import LlamaForCausalLM

from actors.model import lora
from actors.model.causal_lm import load
from actors.orchestrator.fleet import Fleet
from actors.rollout.weights import digest, mismatch
from actors.types import Prompt, Sampling
from cluster.recipe.base import Lora
from cluster.trace import Span
from tests.actors.conftest import CONTEXT, SHARE, changed, drawn_by, prompts, reference_logprobs
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
Tiny = tuple[Path, LlamaForCausalLM]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_those_of_transformers_at_the_sampling_temperature(
    fleet: Fleet, tiny: Tiny, fresh_version: int, temperature: float
):
    fleet.load(fresh_version, tiny[1].state_dict())
    asked = prompts(f"parity-{temperature}", 4)
    groups = fleet.generate(asked, Sampling(3 if temperature else 1, temperature, 24, seed=5))
    for prompt in asked:
        for sample in groups[prompt.id]:
            row = prompt.token_ids + sample.token_ids
            expected = reference_logprobs(tiny[1], row, len(prompt.token_ids), temperature or 1.0)
            assert sample.logprobs == pytest.approx(expected, abs=1e-4)
            assert sample.weight_versions == [fresh_version] * len(sample.token_ids)


def test_a_seeded_draw_does_not_depend_on_actor_or_batch(fleet: Fleet):
    asked = prompts("seeded", 6)
    sampling = Sampling(2, 1.0, 12, seed=9)
    first = fleet.generate(asked, sampling)
    second = {prompt.id: fleet.generate([prompt], sampling)[prompt.id] for prompt in reversed(asked)}
    other = fleet.generate(asked, Sampling(2, 1.0, 12, seed=10))
    drawn = [{name: [sample.token_ids for sample in groups[name]] for name in groups} for groups in (first, second)]
    assert drawn[0] == drawn[1]
    assert all(first[name][0].token_ids != other[name][0].token_ids for name in first)
    assert all(first[name][0].token_ids != first[name][1].token_ids for name in first)


def test_more_prompts_with_a_seed_than_a_step_reads_are_answered(fleet: Fleet):
    """Of 128 prompts that an engine takes at once, one would be read in two parts."""
    asked = [Prompt(f"long-{number}", [2 + number, *range(10, 160)]) for number in range(256)]
    deaths = fleet.counters().deaths
    drawn = fleet.generate(asked, Sampling(1, 1.0, 2, seed=3))
    assert all(drawn[prompt.id][0].token_ids for prompt in asked)
    assert fleet.counters().deaths == deaths


def test_one_actor_draws_for_two_calls_at_once_and_each_gets_its_own(fleet: Fleet, tiny: Tiny, fresh_version: int):
    fleet.load(fresh_version, tiny[1].state_dict())
    sampling = Sampling(2, 1.0, 60, seed=4)
    asked = [prompts("first", 8), prompts("second", 8)]
    apart = [fleet.generate(some, sampling) for some in asked]
    start = time.monotonic()
    for some in asked:
        fleet.submit(some, sampling)
    together = {group[0].id.prompt: group for group in fleet.collect(16)}
    draws: list[Span] = []

    def drawn() -> bool:
        # The end of a request is recorded only after its samples have been handed over.
        draws.extend(span for span in fleet.take_spans() if span.what == "draw" and span.begin >= start)
        return sum(len(span.prompts) for span in draws) == 16

    wait_until(drawn, 30, "the ends of all requests")
    overlapping = [
        (one, other)
        for one, other in itertools.combinations(draws, 2)
        if one.who == other.who and one.begin < other.end and other.begin < one.end
    ]
    assert overlapping
    for name, group in (apart[0] | apart[1]).items():
        assert [sample.token_ids for sample in group] == [sample.token_ids for sample in together[name]]


@pytest.mark.parametrize("end", [4, 6])
def test_each_end_token_is_kept_and_stops(fleet: Fleet, tiny: Tiny, fresh_version: int, end: int):
    state = {name: tensor.clone() for name, tensor in tiny[1].state_dict().items()}
    # A longer row for the end token makes it likely after some tokens and impossible after others.
    state["model.embed_tokens.weight"][end] *= 15
    fleet.load(fresh_version, state)
    groups = fleet.generate(prompts("end", 8), Sampling(8, 1.0, 20, seed=2))
    samples = [sample for group in groups.values() for sample in group]
    stopped = [sample for sample in samples if sample.finish_reason == "stop"]
    cut = [sample for sample in samples if sample.finish_reason == "length"]
    assert len(stopped) + len(cut) == len(samples)
    assert stopped
    assert cut
    assert all(sample.token_ids.index(end) == len(sample.token_ids) - 1 for sample in stopped)
    assert all(not {4, 6} & set(sample.token_ids) and len(sample.token_ids) == 20 for sample in cut)
    assert all("<|end|>" not in sample.text for sample in stopped)


def test_scores_are_those_of_transformers_up_to_a_full_context(fleet: Fleet, tiny: Tiny, fresh_version: int):
    fleet.load(fresh_version, tiny[1].state_dict())
    rows = [[(7 * i * i + 3) % 300 for i in range(length)] for length in (CONTEXT, 40, 3)]
    starts = [1, 10, 2]
    scores = ray.get(fleet.handles()[0].score.remote(rows, starts), timeout=180)
    for row, start, found in zip(rows, starts, scores, strict=True):
        assert found == pytest.approx(reference_logprobs(tiny[1], row, start, 1.0), abs=1e-4)


def test_the_digest_is_of_the_weights_the_engine_computes_with(fleet: Fleet, tiny: Tiny, fresh_version: int):
    state = changed(tiny[1], seed=fresh_version).state_dict()
    expected = digest((name, tensor) for name, tensor in state.items() if name != "lm_head.weight")
    assert len(expected) == 1 + 3 * tiny[1].config.num_hidden_layers
    (handle, *_) = fleet.handles()
    assert mismatch(expected, ray.get(handle.checksums.remote(), timeout=180)) is not None
    fleet.load(fresh_version, state)
    for handle in fleet.handles():
        assert mismatch(expected, ray.get(handle.checksums.remote(), timeout=180)) is None


def test_adapters_alone_are_sent_and_merged_by_the_engines(fleet: Fleet, tiny: Tiny, fresh_version: int):
    policy = load(tiny[0])
    lora.add(policy, Lora(rank=4, alpha=8), seed=1)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if name.endswith(lora.UP):
                value.normal_(0, 0.1)
    sent = lora.scaled_adapters(policy, policy.state_dict())
    fleet.load(fresh_version, sent)
    for handle in fleet.handles():
        assert mismatch(fleet.digests(sent), ray.get(handle.checksums.remote(), timeout=180)) is None
    asked = prompts("adapters", 4)
    groups = fleet.generate(asked, Sampling(2, 1.0, 24, seed=5))
    gaps = []
    for prompt in asked:
        for sample in groups[prompt.id]:
            row = prompt.token_ids + sample.token_ids
            expected, without = (
                reference_logprobs(model, row, len(prompt.token_ids), 1.0) for model in (policy, tiny[1])
            )
            assert sample.logprobs == pytest.approx(expected, abs=1e-4)
            assert sample.weight_versions == [fresh_version] * len(sample.token_ids)
            gaps += [abs(one - other) for one, other in zip(expected, without, strict=True)]
    assert max(gaps) > 0.1


def test_a_request_that_the_engine_refuses_is_a_value_error_and_does_no_harm(fleet: Fleet):
    (actor, *_) = fleet.handles()
    for sampling, reason in ((Sampling(1, 9.0, 4), "temperature"), (Sampling(2, 0.0, 4), "greedy")):
        with pytest.raises(RayTaskError) as error:
            drawn_by(actor, prompts("refused", 1), sampling)
        assert isinstance(error.value.cause, ValueError)
        assert reason in str(error.value.cause)
    assert drawn_by(actor, prompts("refused", 1), Sampling(1, 1.0, 4))[0][0].token_ids


def test_weights_change_in_the_midst_of_answers_and_every_token_says_which_drew_it(tiny: Tiny, ray_session: None):
    models, last = (tiny[1], changed(tiny[1], seed=3)), 12
    asked = prompts("in-flight", 4)
    with Fleet(tiny[0], 1, SHARE, CONTEXT, seed=1, deadline=300, swap_in_flight=True) as fleet:
        fleet.submit(asked, Sampling(2, 1.0, 200, seed=5))
        for version in range(1, last + 1):
            fleet.load(version, models[version % 2].state_dict())
        groups = fleet.collect(len(asked))
        (actor,) = fleet.handles()
        found, process = ray.get([actor.checksums.remote(), actor.process.remote()], timeout=180)
    wait_until(lambda: not psutil.pid_exists(process), 60, "the actor's process to end")
    state = models[last % 2].state_dict()
    expected = digest((name, tensor) for name, tensor in state.items() if name != "lm_head.weight")
    assert mismatch(expected, found) is None
    given = {prompt.id: prompt.token_ids for prompt in asked}
    samples = [sample for group in groups for sample in group]
    assert max(len(set(sample.weight_versions)) for sample in samples) > 1
    for sample in samples:
        assert sample.weight_versions == sorted(sample.weight_versions)
        prompt = given[sample.id.prompt]
        by = [reference_logprobs(model, prompt + sample.token_ids, len(prompt), 1.0) for model in models]
        told = [by[version % 2][index] for index, version in enumerate(sample.weight_versions)]
        assert sample.logprobs == pytest.approx(told, abs=1e-3)
