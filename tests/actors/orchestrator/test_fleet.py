"""Rollout actors as Ray actors with real engines."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import ray
from transformers import LlamaForCausalLM

from actors.orchestrator.coordination.members import ActorState
from actors.orchestrator.fleet import Fleet
from actors.types import Sampling
from cluster.errors import DeadlineError, UserError
from tests.actors.conftest import CONTEXT, SHARE, changed, drawn_by, prompts, reference_logprobs
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
Tiny = tuple[Path, LlamaForCausalLM]


def processes(fleet: Fleet) -> list[int]:
    return ray.get([handle.process.remote() for handle in fleet.handles()], timeout=180)


def test_samples_after_a_sync_are_of_the_new_weights(fleet: Fleet, tiny: Tiny, fresh_version: int):
    new = changed(tiny[1], seed=fresh_version)
    fleet.load(fresh_version, new.state_dict())
    asked = prompts("synced", 4)
    greedy = Sampling(1, 0.0, 16)
    groups = fleet.generate(asked, greedy)
    for prompt in asked:
        (sample,) = groups[prompt.id]
        row = prompt.token_ids + sample.token_ids
        assert sample.logprobs == pytest.approx(reference_logprobs(new, row, 6, 1.0), abs=1e-4)
        assert sample.logprobs != pytest.approx(reference_logprobs(tiny[1], row, 6, 1.0), abs=1e-2)
        assert set(sample.weight_versions) == {fresh_version}
    assert groups == fleet.generate(asked, greedy)


def test_versions_only_grow(fleet: Fleet, tiny: Tiny, fresh_version: int):
    fleet.load(fresh_version, tiny[1].state_dict())
    with pytest.raises(ValueError, match="not newer"):
        fleet.load(fresh_version, tiny[1].state_dict())


def test_a_killed_actor_loses_no_prompt_and_its_replacement_has_the_current_weights(
    fleet: Fleet, tiny: Tiny, fresh_version: int
):
    new = changed(tiny[1], seed=fresh_version)
    fleet.load(fresh_version, new.state_dict())
    deaths = fleet.counters().deaths
    victim = processes(fleet)[0]
    asked = prompts("killed", 24)
    fleet.submit(asked, Sampling(8, 1.0, 120, seed=1))
    time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    groups = fleet.collect(24, deadline=240)
    assert sorted(group[0].id.prompt for group in groups) == sorted(prompt.id for prompt in asked)
    assert all([sample.id.sample for sample in group] == list(range(8)) for group in groups)
    with pytest.raises(DeadlineError, match="samples of 1 prompts"):
        fleet.collect(1, deadline=0.1)
    wait_until(lambda: fleet.states() == [ActorState.READY] * 2, 240, "the replacement")
    assert fleet.counters().deaths == deaths + 1
    assert victim not in processes(fleet)
    versions = ray.get([handle.version.remote() for handle in fleet.handles()], timeout=180)
    assert versions == [fresh_version] * 2


def test_an_engine_that_stops_is_replaced_in_seconds_and_loses_no_prompt(tiny: Tiny, ray_session: None):
    with Fleet(tiny[0], 1, SHARE, CONTEXT, seed=1, deadline=3600, stall=8) as fleet:
        (victim,) = processes(fleet)
        fleet.submit(prompts("stopped", 8), Sampling(8, 1.0, 200, seed=1))
        time.sleep(0.5)
        os.kill(victim, signal.SIGSTOP)
        # 8 s without progress are enough; the deadline alone would be an hour.
        wait_until(lambda: fleet.counters().deaths == 1, 60, "the actor to be given up")
        assert len(fleet.collect(8, deadline=240)) == 8
        wait_until(lambda: not psutil.pid_exists(victim), 60, "the stopped engine's process to end")


def test_drained_actors_lose_nothing_and_joiners_come_with_the_current_weights(
    fleet: Fleet, tiny: Tiny, fresh_version: int
):
    fleet.load(fresh_version, changed(tiny[1], seed=fresh_version).state_dict())
    asked = prompts("drained", 8)
    fleet.submit(asked, Sampling(4, 1.0, 60, seed=1))
    fleet.resize(1)
    assert sorted(fleet.states()) == [ActorState.DRAINING, ActorState.READY]
    groups = fleet.collect(8, deadline=240)
    assert sorted(group[0].id.prompt for group in groups) == sorted(prompt.id for prompt in asked)
    wait_until(lambda: fleet.states() == [ActorState.READY], 240, "the drained actor to leave")
    fleet.resize(2)
    wait_until(lambda: fleet.states() == [ActorState.READY] * 2, 240, "the joiner")
    drawn = [drawn_by(handle, prompts("joined", 1), Sampling(1, 1.0, 4)) for handle in fleet.handles()]
    samples = [group[0] for groups in drawn for group in groups]
    assert [sample.weight_versions for sample in samples] == [[fresh_version] * 4] * 2


def test_a_prompt_without_room_for_an_answer_is_refused(fleet: Fleet):
    (prompt,) = prompts("long", 1)
    prompt.token_ids.extend([5] * CONTEXT)
    with pytest.raises(ValueError, match="prompt long-0 has 262 tokens"):
        fleet.generate([prompt], Sampling(1, 1.0, 4))


def test_a_folder_without_a_model_is_the_users_to_mend(tmp_path: Path, ray_session: None):
    with pytest.raises(UserError, match="holds no model"):
        Fleet(tmp_path, 1, SHARE, CONTEXT, seed=1, deadline=300)
