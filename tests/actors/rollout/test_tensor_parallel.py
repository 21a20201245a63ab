"""An engine whose workers divide the model: two processes on CPUs, which speak by gloo."""

from pathlib import Path

import psutil
import pytest
import ray
import torch
from transformers import LlamaForCausalLM

from actors.model import lora
from actors.model.causal_lm import load
from actors.orchestrator.fleet import Fleet
from actors.rollout.weights import mismatch
from actors.types import Sampling
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.runtime.plan import Allocation
from tests.actors.conftest import CONTEXT, changed, make_model, prompts, reference_logprobs
from tests.helpers import wait_until

SHARE = Allocation(cpus=0.1, gpus=0, threads=2, workers=2)


@pytest.mark.slow
def test_an_engine_of_two_workers_draws_loads_and_dies_as_one_of_one_does(tmp_path: Path, ray_session: None) -> None:
    # Both workers hold the one head of keys and values.
    model = make_model(tmp_path / "model", 1, shared_heads=1)
    with Fleet(tmp_path / "model", 1, SHARE, CONTEXT, seed=1, deadline=300) as fleet:
        asked, sampling = prompts("divided", 4), Sampling(2, 1.0, 16, seed=5)
        (actor,) = fleet.handles()
        process = psutil.Process(ray.get(actor.process.remote(), timeout=60))
        workers = [child for child in process.children(recursive=True) if "Worker" in " ".join(child.cmdline())]
        assert_drawn_by(fleet, model, 0)
        # Every stripe of the columns, whatever worker they lie on.
        whole = fleet.digests(model.state_dict())
        assert mismatch(whole, ray.get(actor.checksums.remote(), timeout=60)) is None
        newer = changed(model, seed=2)
        fleet.load(1, newer.state_dict())
        assert_drawn_by(fleet, newer, 1)
        assert mismatch(whole, ray.get(actor.checksums.remote(), timeout=60)) is not None
        sent = adapters(tmp_path / "model")
        fleet.load(2, sent)
        assert mismatch(fleet.digests(sent), ray.get(actor.checksums.remote(), timeout=60)) is None
        fleet.submit(asked, sampling)
        workers[0].kill()
        wait_until(lambda: fleet.counters().deaths == 1, 30, "the death of the engine")
        wait_until(lambda: not any(map(lives, [process, *workers])), 30, "the end of its processes")


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    policy = load(folder)
    lora.add(policy, Lora(rank=4, alpha=8), seed=1)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if name.endswith(lora.UP):
                value.normal_(0, 0.1)
    return lora.scaled_adapters(policy, policy.state_dict())


def assert_drawn_by(fleet: Fleet, model: LlamaForCausalLM, version: int) -> None:
    asked = prompts(f"version-{version}", 4)
    groups = fleet.generate(asked, Sampling(2, 1.0, 16, seed=5))
    for prompt in asked:
        for sample in groups[prompt.id]:
            expected = reference_logprobs(model, prompt.token_ids + sample.token_ids, len(prompt.token_ids), 1.0)
            assert sample.logprobs == pytest.approx(expected, abs=1e-4)
            assert set(sample.weight_versions) == {version}
    greedy = fleet.generate(asked, Sampling(1, 0.0, 16))
    for prompt in asked:
        with torch.no_grad():
            ids = torch.tensor([prompt.token_ids])
            found = model.generate(ids, max_new_tokens=16, do_sample=False, attention_mask=torch.ones_like(ids))
        assert greedy[prompt.id][0].token_ids == found[0, len(prompt.token_ids) :].tolist()


def test_heads_that_cannot_be_divided_are_an_error_before_anything_starts(tmp_path: Path) -> None:
    make_model(tmp_path, 1)
    with pytest.raises(UserError, match="tensor_parallel=4 does not divide the model's 6 attention heads and 3"):
        Fleet(tmp_path, 1, Allocation(1, 0, 1, workers=4), CONTEXT, seed=1, deadline=300)
