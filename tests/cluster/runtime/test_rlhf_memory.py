"""The GPU memory of RLHF, planned before anything starts."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.runtime.plan import Resources, make_plan, resources_here
from cluster.runtime.rlhf_memory import engine_memory, gpu_layout, shortage
from cluster.runtime.training_memory import learner_memory
from pipelines.cli.plan_report import print_plan
from tests.helpers import ROOT, triptych_here

EIGHT_B = ["model.size=8B", "model.vocabulary=128256", "model.context=1024"]
SEVENTY_B = ["model.start_from=someone/seventy", "model.size=70B", "model.vocabulary=128256", "model.context=1024"]
TRAINED = [
    f"{stage}.{field}"
    for stage in ("pretrain", "sft", "reward")
    for field in ("workers=8", "micro_batch_rows=1", "recompute_activations=true")
]


def eighty(gpus: int) -> Resources:
    return Resources(cpus=512, cores=512, gpus=gpus, memory_gb=4000, gpu_memory_gb=80)


def test_one_learner_of_eight_billion_parameters_needs_two_gpus_worth(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, [*EIGHT_B, "rlhf.micro_batch_rows=1", "rlhf.precision=float32"])
    found = learner_memory(recipe)
    # By hand, for 8e9 parameters: float32 policy, reference, gradients, and two moments.
    assert (found.weights, found.reference, found.gradients, found.optimizer) == pytest.approx((32, 32, 32, 64))
    assert found.logits == pytest.approx(12 * 1024 * 128256 / 1e9)
    assert (found.critic, found.copies, found.casts, found.gathered) == (0, 0, 0, 0)
    four = learner_memory(load_recipe(recipe_path, [*EIGHT_B, "rlhf.fleet.learner_workers=4", "rlhf.algorithm=ppo"]))
    assert (four.weights, four.reference, four.critic) == pytest.approx((8, 8, 32))
    assert four.casts == pytest.approx(16)
    lora = learner_memory(load_recipe(recipe_path, [*EIGHT_B, "rlhf.lora={rank: 16}"]))
    assert (lora.reference, lora.weights) == (0, 32)
    assert lora.optimizer < 1


def test_an_engine_holds_weights_in_sixteen_bits_and_one_context(recipe_path: Path) -> None:
    found = engine_memory(load_recipe(recipe_path, ["model.hidden=4096", "model.layers=32", "model.context=1000"]))
    assert found["KV cache of one context"] == pytest.approx(1000 * 2 * 2 * 32 * 4096 / 1e9)


def test_rlhf_that_does_not_fit_is_refused_with_what_is_short_and_a_change_that_helps(recipe_path: Path) -> None:
    overrides = [*EIGHT_B, *TRAINED]
    with pytest.raises(
        UserError, match=r"too little GPU memory: rlhf .* GB too few; of the learner's: weights 32\.0"
    ) as no:
        make_plan(load_recipe(recipe_path, overrides), eighty(8))
    said = str(no.value)
    needed, short = (
        float(re.findall(pattern, said)[0]) for pattern in (r": ([\d.]+) GB, and 80", r"([\d.]+) GB too few")
    )
    assert needed - 80 == pytest.approx(short, abs=0.11)
    assert needed > 160
    changes = re.findall(r"rlhf\.[\w.]+=(?:\{[^}]*\}|\w+)", said)
    gpus = max([8, *(int(count) for count in re.findall(r"(\d+) GPUs, one", said))])
    assert changes, said
    assert make_plan(load_recipe(recipe_path, [*overrides, *changes]), eighty(gpus))


def test_the_number_of_workers_is_advised_where_it_helps_and_not_where_it_cannot(recipe_path: Path) -> None:
    seventy = [*SEVENTY_B, *TRAINED]
    with pytest.raises(UserError, match=r"pretrain .* GB too few; it fits with pretrain\.workers=32"):
        make_plan(load_recipe(recipe_path, seventy), eighty(64))
    spread = [f"{stage}.workers=32" for stage in ("pretrain", "sft", "reward")]
    with pytest.raises(UserError, match=r"the reward model takes 280\.0 GB of one GPU: .* kind function or http"):
        make_plan(load_recipe(recipe_path, [*seventy, *spread]), eighty(64))
    long = [f"{stage}.batch_rows=32" for stage in ("pretrain", "sft", "reward")]
    with pytest.raises(UserError, match=r"no number of pretrain\.workers helps: set a shorter model\.context"):
        make_plan(load_recipe(recipe_path, [*seventy, *long, "model.context=131072"]), eighty(64))


def test_an_engine_larger_than_a_gpu_is_advised_to_take_several(recipe_path: Path) -> None:
    computed = "rlhf.rewards=[{kind: function, function: 'a.b:c'}]"
    overrides = [*SEVENTY_B, *TRAINED, computed]
    spread = [f"{stage}.workers=32" for stage in ("pretrain", "sft", "reward")]
    with pytest.raises(UserError, match=r"rlhf\.fleet\.tensor_parallel=4 and .*learner_workers=\d+") as refused:
        make_plan(load_recipe(recipe_path, [*overrides, *spread]), eighty(64))
    changes = re.findall(r"rlhf\.[\w.]+=(?:\{[^}]*\}|\w+)", str(refused.value))
    changed = load_recipe(recipe_path, [*overrides, *spread, *changes])
    assert make_plan(changed, eighty(64)).rollout.gpus == 4
    engines = [process for gpu in gpu_layout(changed, 64, 1.0, 80) for process in gpu if "rollout" in process.name]
    assert [process.name for process in engines] == [f"rollout {one}.{part}" for one in (0, 1) for part in range(4)]
    assert sum(engine_memory(changed).values()) < 80 * 0.9


@pytest.mark.parametrize(
    ("name", "gpus", "share"), [("8b-8gpu", 8, 1.0), ("32b-32gpu", 31, 2.0), ("70b-64gpu", 61, 4.0)]
)
def test_the_recipes_of_large_models_fit_and_their_layout_is_printed(name: str, gpus: int, share: float) -> None:
    recipe = load_recipe(ROOT / "infra" / "recipes" / f"{name}.yaml", [])
    resources = resources_here(recipe.cluster)
    printed = Console(record=True, width=160, file=io.StringIO())
    print_plan(recipe, resources, printed)
    assert make_plan(recipe, resources).rollout.gpus == share
    layout = printed.export_text().partition("layout")[2]
    rows = [line for line in layout.splitlines() if re.search(r"learner \d|rollout \d|reward \d", line)]
    assert len(rows) == gpus - (0 if recipe.rlhf.reward_models else 1)
    assert all(int(re.findall(r"(\d+)%", row)[0]) <= 100 for row in rows)
    # With half the memory, the error names a change with which it fits, or GPUs with more memory.
    with pytest.raises(UserError, match=r"GB too few; .*(it fits with|choose GPUs with more memory)"):
        make_plan(load_recipe(ROOT / "infra" / "recipes" / f"{name}.yaml", ["cluster.gpu_memory_gb=40"]), resources)


def test_processes_that_share_a_gpu_have_to_fit_together(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["model.size=1B", "rlhf.micro_batch_rows=1", "rlhf.precision=float32"])
    (one,) = gpu_layout(recipe, 1, 0.25, 80)
    assert [process.name for process in one] == ["learner 0", "reward 0", "rollout 0", "rollout 1"]
    # vLLM takes 0.9 of each engine's share: 36 GB; the learner holds 20 bytes a parameter, the reward model 4.
    assert sum(process.memory_gb for process in one) == pytest.approx(36 + 20 + 4, rel=0.05)
    assert shortage(recipe, 1, 0.25, 80) is None
    assert "GPUs, one for each process" in str(shortage(recipe, 1, 0.25, 40))
    apart = gpu_layout(recipe, 8, 1.0, 80)
    assert [len(processes) for processes in apart] == [1, 1, 1, 1]


@pytest.mark.parametrize(("rewards", "planned"), [("[{kind: function, function: 'm:f'}]", 0), ("[{kind: model}]", 1)])
def test_the_plan_lists_reward_actors_only_of_a_recipe_with_a_reward_model(
    recipe_path: Path, rewards: str, planned: int
) -> None:
    printed = Console(record=True, width=160, file=io.StringIO())
    print_plan(load_recipe(recipe_path, [f"rlhf.rewards={rewards}"]), Resources(2, 2, 0, 20), printed)
    shares = printed.export_text().partition("shares")[2]
    assert ("learner" in shares, shares.count("1 reward")) == (True, planned)


def test_the_plan_prints_the_layout(recipe_path: Path, tmp_path: Path) -> None:
    machine = ["cluster.cpus=64", "cluster.gpus=4", "cluster.gpu_memory_gb=80", "cluster.memory_gb=900"]
    done = triptych_here("run", recipe_path, "model.size=1B", *machine, "--plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "KV cache of one context" in done.stdout
    assert "learner 0" in done.stdout.partition("layout")[2]
