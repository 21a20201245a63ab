import math
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.failures import UserError
from cluster.plan import Resources, make_plan, memory_needs
from cluster.recipe import load_recipe

LAPTOP = Resources(cpus=2, cores=2, gpus=0, memory_gb=20)


@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("actors", [1, 2, 5])
def test_all_actors_of_a_stage_fit_at_once(recipe_path: Path, cpus: int, actors: int) -> None:
    recipe = load_recipe(recipe_path, [f"rlhf.rollout_actors={actors}"])
    plan = make_plan(recipe, replace(LAPTOP, cpus=cpus, cores=cpus))
    assert actors * plan.rollout.cpus + plan.reward.cpus + plan.learner.cpus <= cpus / 2
    assert plan.trainer.cpus + plan.data_cpus <= cpus
    assert min(plan.rollout.cpus, plan.trainer.cpus, plan.data_cpus, plan.replica.cpus) > 0
    assert cpus == 1 or plan.data_cpus >= 1, "a read task takes a whole CPU"
    assert cpus == 1 or 4 * plan.replica.cpus + 1 <= cpus, "four replicas and a gateway"


def test_threads_use_the_cores(recipe_path: Path) -> None:
    plan = make_plan(load_recipe(recipe_path, ["pretrain.workers=2"]), replace(LAPTOP, cpus=8, cores=8))
    assert (plan.trainer.threads, plan.rollout.threads, plan.learner.threads, plan.reward.threads) == (4, 4, 8, 8)


@pytest.mark.parametrize(("gpus", "share"), [(8, 1.0), (4, 1.0), (2, 0.5), (1, 0.25)])
def test_gpus_are_shared_only_when_they_are_short(recipe_path: Path, gpus: int, share: float) -> None:
    plan = make_plan(load_recipe(recipe_path), Resources(cpus=16, cores=16, gpus=gpus, memory_gb=100, gpu_memory_gb=80))
    assert (plan.trainer.gpus, plan.rollout.gpus, plan.learner.gpus) == (1.0, share, share)
    on_each = math.floor(1 / plan.rollout.gpus)
    assert on_each * gpus >= 4


@pytest.mark.parametrize(
    ("override", "resources", "message"),
    [
        ("model.size=8B", LAPTOP, r"8,000\.0M parameters needs about \d+\.\d GB and 20\.0 GB are free"),
        ("cluster.memory_gb=1", LAPTOP, r"1\.0 GB are free"),
        ("pretrain.workers=4", LAPTOP, r"pretrain\.workers=4 is more than the 2 CPU cores"),
        ("rlhf.rollout_actors=17", LAPTOP, "at most 8 a core"),
        ("sft.workers=4", Resources(16, 16, 2, 100, 80), r"sft\.workers=4 needs as many GPUs and there are 2"),
        ("model.size=8B", Resources(16, 16, 2, 500, 80), r"128\.0 GB on each of 1 GPUs and 80\.0 GB"),
    ],
)
def test_what_cannot_fit_is_refused(recipe_path: Path, override: str, resources: Resources, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(recipe_path, [override]), resources)


def test_memory_grows_by_sixteen_bytes_a_trained_parameter(recipe_path: Path) -> None:
    small, large = (memory_needs(load_recipe(recipe_path, [f"model.size={size}"])) for size in ("1B", "2B"))
    assert large["pretrain"] - small["pretrain"] == pytest.approx(16 + 8)
