import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.model import Model
from cluster.runtime.machine_memory import memory_needs
from cluster.runtime.memory import parameters, shape_of
from cluster.runtime.plan import Node, Resources, make_plan
from cluster.runtime.training_memory import training_memory
from pipelines.cli.stage_runner import print_resource_plan
from tests.helpers import triptych_here

LAPTOP = Resources(cpus=2, cores=2, gpus=0, memory_gb=20)


@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("actors", [1, 2, 5])
def test_all_actors_of_a_stage_fit_at_once(recipe_path: Path, cpus: int, actors: int) -> None:
    recipe = load_recipe(recipe_path, [f"rlhf.fleet.rollout_actors={actors}"])
    plan = make_plan(recipe, replace(LAPTOP, cpus=cpus, cores=cpus))
    assert actors * plan.rollout.cpus + plan.reward.cpus + plan.learner.cpus <= cpus / 2
    assert recipe.pretrain.workers * plan.trainer.cpus <= cpus
    assert min(plan.rollout.cpus, plan.trainer.cpus, plan.replica.cpus) > 0
    assert cpus == 1 or 4 * plan.replica.cpus + 1 <= cpus, "four replicas and a gateway"


def test_threads_use_the_cores(recipe_path: Path) -> None:
    plan = make_plan(load_recipe(recipe_path, ["pretrain.workers=2"]), replace(LAPTOP, cpus=8, cores=8))
    assert (plan.trainer.threads, plan.rollout.threads, plan.learner.threads, plan.reward.threads) == (4, 4, 8, 8)
    beside = make_plan(load_recipe(recipe_path, ["rlhf.fleet.max_staleness=1"]), replace(LAPTOP, cpus=8, cores=8))
    assert 2 * beside.rollout.threads + beside.learner.threads == 8


def test_reward_actors_are_planned_for_their_largest_number(recipe_path: Path) -> None:
    one = load_recipe(recipe_path)
    four = load_recipe(recipe_path, ["rlhf.fleet.reward_actors=2", "rlhf.fleet.max_reward_actors=4"])
    plan = make_plan(four, replace(LAPTOP, cpus=16, cores=16))
    actors = four.rlhf.fleet.rollout_actors * plan.rollout.cpus + 4 * plan.reward.cpus + plan.learner.cpus
    assert actors == pytest.approx(8, abs=0.1)
    assert plan.reward.threads == 4
    apart = memory_needs(four)["rlhf"] - memory_needs(one)["rlhf"]
    assert apart == pytest.approx(3 * (0.7 + 4 * 2.5e-3), abs=0.02)
    computed = "rlhf.rewards=[{kind: function, function: 'a.b:c'}]"
    assert (
        memory_needs(load_recipe(recipe_path, [computed, "rlhf.fleet.reward_actors=4"]))["rlhf"]
        < memory_needs(one)["rlhf"]
    )


def test_engines_over_several_gpus_get_them_on_one_node(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["rlhf.fleet.tensor_parallel=4"])
    nodes = tuple(Node(64, 8) for _ in range(2))
    cluster = Resources(cpus=128, cores=64, gpus=16, memory_gb=900, gpu_memory_gb=80, nodes=nodes)
    plan = make_plan(recipe, cluster)
    assert (plan.rollout.gpus, plan.rollout.workers, plan.learner.gpus) == (4.0, 4, 1.0)
    assert plan.rollout.cpus == pytest.approx(4 * plan.learner.cpus)
    with pytest.raises(UserError, match=r"tensor_parallel=4 needs whole GPUs: RLHF takes 10 in all, and there are 8"):
        make_plan(recipe, replace(cluster, gpus=8, nodes=nodes[:1]))
    small = tuple(Node(8, 3) for _ in range(8))
    with pytest.raises(UserError, match=r"2 engines of 4 devices, each on one node, do not fit on nodes of 8 × 8 CPUs"):
        make_plan(recipe, replace(cluster, gpus=24, nodes=small))
    on_cpus = make_plan(recipe, replace(LAPTOP, cpus=16, cores=16))
    assert (on_cpus.rollout.gpus, on_cpus.rollout.workers) == (0, 4)


@pytest.mark.parametrize(("gpus", "share"), [(8, 1.0), (4, 1.0), (2, 0.5), (1, 0.25)])
def test_gpus_are_shared_only_when_there_are_too_few(recipe_path: Path, gpus: int, share: float) -> None:
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
        ("rlhf.fleet.rollout_actors=17", LAPTOP, "at most 8 a core"),
        ("sft.workers=4", Resources(16, 16, 2, 100, 80), r"sft\.workers=4 needs as many GPUs and there are 2"),
        ("model.size=8B", Resources(16, 16, 2, 500, 80), r"\d{3}\.\d GB on each of 1 GPUs and 80\.0 GB"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    recipe_path: Path, override: str, resources: Resources, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(recipe_path, [override]), resources)


def test_memory_grows_by_sixteen_bytes_a_trained_parameter(recipe_path: Path) -> None:
    recipes = [load_recipe(recipe_path, [f"model.size={size}", "pretrain.precision=bfloat16"]) for size in ("1B", "2B")]
    small, large = (training_memory(recipe, recipe.pretrain, "cpu") for recipe in recipes)
    grown = {name: value - asdict(small)[name] for name, value in asdict(large).items()}
    assert grown["weights"] + grown["gradients"] + grown["optimizer"] == pytest.approx(16)
    assert grown["casts"] == pytest.approx(2)
    # On the machine, two versions of the weights besides.
    needs = [memory_needs(recipe)["pretrain"] for recipe in recipes]
    assert needs[1] - needs[0] == pytest.approx(large.total - small.total + 8)


def test_gradients_that_are_added_up_once_are_whole_on_every_worker(recipe_path: Path) -> None:
    both = [load_recipe(recipe_path, [*EIGHT_B, f"sft.reduce_once={once}"]) for once in ("false", "true")]
    each, once = (training_memory(recipe, recipe.sft, "cuda").gradients for recipe in both)
    assert (each, once) == pytest.approx((4.0, 36.0))


def test_without_a_set_precision_a_cpu_is_planned_for_the_larger(recipe_path: Path) -> None:
    def planned(device: str, rows: int, *precision: str) -> float:
        chosen = [f"pretrain.precision={name}" for name in precision]
        recipe = load_recipe(recipe_path, ["model.size=1B", f"pretrain.micro_batch_rows={rows}", *chosen])
        return training_memory(recipe, recipe.pretrain, device).total

    # Few tokens: the copies of the weights in 16 bits weigh more. Many: the activations in 32.
    for rows, larger in ((1, "bfloat16"), (16, "float32")):
        assert planned("cpu", rows) == planned("cpu", rows, larger)
        assert planned("cpu", rows) > min(planned("cpu", rows, each) for each in ("bfloat16", "float32"))
    assert planned("cuda", 16) == planned("cuda", 16, "bfloat16")


def test_the_critic_and_the_copies_for_limits_are_counted(recipe_path: Path) -> None:
    def learner(*overrides: str) -> float:
        return memory_needs(load_recipe(recipe_path, ["model.size=1B", *overrides]))["rlhf"]

    # Weights, gradients and two moments in float32; and two copies of the weights.
    assert learner("rlhf.algorithm=ppo") - learner() == pytest.approx(16)
    assert learner("rlhf.stop.min_entropy=0.1") - learner() == pytest.approx(8)
    lora = "rlhf.lora={rank: 8}"
    assert 0 < learner(lora, "rlhf.stop.max_kl=5") - learner(lora) < 0.2


@pytest.mark.parametrize(
    ("stage", "overrides", "contexts"),
    [
        ("sft", [], 1),
        ("dpo", [], 2),
        # Four answers of at most 32 tokens; then of a whole context each; then one more.
        ("reward", [], 1 + 3 * 32 / 256),
        ("reward", ["collect.annotator=imported"], 4),
        ("reward", ["reward.counterexamples=[longer]"], 1 + 4 * 32 / 256),
    ],
)
def test_a_row_counts_every_sequence_that_it_holds(
    recipe_path: Path, stage: str, overrides: list[str], contexts: float
) -> None:
    recipe = load_recipe(recipe_path, ["dpo={micro_batch_rows: 16}", *overrides])
    text, found = (training_memory(recipe, getattr(recipe, name), "cpu") for name in ("pretrain", stage))
    assert found.activations == pytest.approx(contexts * text.activations)
    assert found.logits == pytest.approx(0 if stage == "reward" else contexts * text.logits)


def test_a_hub_model_needs_its_size_in_the_recipe(recipe_path: Path) -> None:
    hub = "model.start_from=someone/their-model-1b"
    with pytest.raises(UserError, match=r"their-model-1b is no folder .*: set model\.size and model\.vocabulary"):
        make_plan(load_recipe(recipe_path, [hub, "model.size=1B"]), LAPTOP)
    said = load_recipe(recipe_path, [hub, "model.size=1B", "model.vocabulary=50000"])
    assert memory_needs(said)["sft"] > 16


def test_the_shape_is_read_from_the_folder_to_start_from(recipe_path: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 300}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "vocab_size": 60_000}))
    save_file({"weight": torch.zeros(1024, 1024)}, tmp_path / "model.safetensors")
    recipe = load_recipe(
        recipe_path, [f"model.start_from={tmp_path}", "sft.micro_batch_rows=1", "sft.precision=bfloat16"]
    )
    found = training_memory(recipe, recipe.sft, "cpu")
    assert found.weights == pytest.approx(4 * 2**20 / 1e9)
    assert found.activations == pytest.approx(256 * 128 * 5 * 126 / 1e9)
    assert found.logits == pytest.approx(12 * 256 * 60_000 / 1e9)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        make_plan(recipe, LAPTOP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_counted_whatever_their_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = {"a.safetensors": ("one", 300), "b.safetensors": ("two", 700)}
    for file, (name, size) in parts.items():
        save_file({name: torch.zeros(size, dtype=dtype)}, tmp_path / file)
    # The same weights once more, in the layout of another program.
    save_file({"all": torch.zeros(1000, dtype=dtype)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {name: file for file, (name, _) in parts.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    start = Model(start_from=str(tmp_path))
    assert parameters(start) == 1000
    (tmp_path / "a.safetensors").write_bytes(bytes(50))
    with pytest.raises(UserError, match=r"a\.safetensors is no safetensors file, or damaged"):
        parameters(start)


@pytest.mark.parametrize("fields", [{"hidden": 64, "layers": 2}, {"hidden": 64}, {"layers": 3}])
def test_a_set_shape_decides_the_parameters(fields: dict[str, int]) -> None:
    model = Model(size="135M", vocabulary=4096, **fields)
    assert parameters(model) == shape_of(model).parameters(4096)


EIGHT_B = ["model.size=8B", "model.vocabulary=128256", "model.context=4096", "pretrain.workers=8", "sft.workers=8"] + [
    f"{stage}.{field}"
    for stage in ("pretrain", "sft", "reward")
    for field in ("workers=8", "micro_batch_rows=1", "recompute_activations=true")
]
EIGHT_B += ["rlhf.fleet.learner_workers=4", "rlhf.lora={rank: 16}", "rlhf.micro_batch_rows=1"]
EIGHT_GPUS = Resources(cpus=64, cores=64, gpus=8, memory_gb=900, gpu_memory_gb=80)


def test_eight_billion_parameters_on_eight_gpus(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, EIGHT_B)
    found = training_memory(recipe, recipe.pretrain, "cuda")
    # By hand: 8e9 parameters in float32 over 8 workers, two moments each.
    assert (found.weights, found.gradients, found.optimizer) == pytest.approx((4.0, 4.0, 8.0))
    # A Llama of this size is 32 layers of width 4096 or near it: 4096 tokens of 4 bytes a layer and one layer's 58.
    assert found.activations == pytest.approx(4096 * 4096 * (4 * 32 + 58) / 1e9, rel=0.2)
    assert found.casts == 0
    # All logits at once; the CPU holds 2^26 of them at a time.
    assert found.logits == pytest.approx(12 * 4096 * 128256 / 1e9)
    assert training_memory(recipe, recipe.pretrain, "cpu").logits == pytest.approx(12 * 2**26 / 1e9)
    # Three layers of 0.23e9 parameters, and twice the embedding of 0.53e9, in float32.
    assert found.gathered == pytest.approx(4 * (3 * 0.233 + 2 * 0.525), rel=0.15)
    assert found.total < 80
    plan = make_plan(recipe, EIGHT_GPUS)
    assert (plan.trainer.gpus, plan.trainer.cpus) == (1.0, 8.0)


def test_a_new_model_is_whole_in_every_worker_before_it_is_sharded_and_one_in_files_is_not(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, EIGHT_B)
    needs = memory_needs(recipe, on_gpu=True)
    # By hand: a version of the weights twice in 16 bits, Ray, eight processes; and eight models of 32 GB.
    assert needs["pretrain"] == pytest.approx(32 + 0.8 + 8 * (0.7 + 32))
    # Fine-tuning reads a model by parts; a checkpoint of weights and moments is more.
    assert needs["sft"] == pytest.approx(32 + 0.8 + 8 * 0.7 + 96)
    with pytest.raises(UserError, match=r"pretrain .* needs about 294\.4 GB and 290\.0 GB are free"):
        make_plan(recipe, replace(EIGHT_GPUS, memory_gb=290))
    sixteen = [*EIGHT_B, *(f"{stage}.workers=16" for stage in ("pretrain", "sft", "reward")), "model.context=256"]
    alone = load_recipe(recipe_path, [*sixteen, "rlhf.rewards=[{kind: function, function: 'a.b:c'}]"])
    small = [f"rlhf.fleet.{name}" for name in ("learner_workers=8", "tensor_parallel=2")]
    small.append("rlhf.recompute_activations=true")
    recipe = load_recipe(recipe_path, [*sixteen, *small, "rlhf.rewards=[{kind: function, function: 'a.b:c'}]"])
    assert training_memory(alone, alone.pretrain, "cuda").total < 24
    # No GPU ever holds the whole model of 32 GB.
    assert make_plan(recipe, Resources(cpus=64, cores=64, gpus=16, memory_gb=2000, gpu_memory_gb=24)).trainer.gpus == 1


def test_a_checkpoint_is_written_from_a_copy_on_the_machine(recipe_path: Path) -> None:
    def needed(*overrides: str) -> dict[str, float]:
        return memory_needs(load_recipe(recipe_path, ["model.size=8B", *overrides]), on_gpu=True)

    # By hand: two versions of the weights, Ray and a process; and weights with two moments, more than the model.
    alone = needed("sft.lora={rank: 8}")
    assert alone["pretrain"] == pytest.approx(32 + 0.8 + 0.7 + 96)
    # Adapters take little memory to write: the model at the start takes more, and so do the models of eight workers.
    assert alone["sft"] == pytest.approx(32 + 0.8 + 0.7 + 32)
    assert needed("pretrain.workers=8")["pretrain"] == pytest.approx(32 + 0.8 + 8 * (0.7 + 32))


def test_the_recipe_can_set_the_memory_of_remote_gpus(recipe_path: Path) -> None:
    cluster = replace(EIGHT_GPUS, gpu_memory_gb=None)
    assert make_plan(load_recipe(recipe_path, EIGHT_B), cluster)
    with pytest.raises(UserError, match=r"12\.0 GB are there"):
        make_plan(load_recipe(recipe_path, [*EIGHT_B, "cluster.gpu_memory_gb=12"]), cluster)


def test_too_many_activations_are_refused_with_advice(recipe_path: Path) -> None:
    many = [*EIGHT_B, "pretrain.micro_batch_rows=16", "pretrain.recompute_activations=false"]
    with pytest.raises(UserError, match="it fits with ") as refused:
        make_plan(load_recipe(recipe_path, many), EIGHT_GPUS)
    changes = str(refused.value).partition("it fits with ")[2].split(" and ")
    assert changes == ["pretrain.micro_batch_rows=1", "pretrain.recompute_activations=true"]
    assert make_plan(load_recipe(recipe_path, [*many, *changes]), EIGHT_GPUS)


def test_the_plan_is_printed_and_nothing_is_started(recipe_path: Path, tmp_path: Path) -> None:
    machine = ["cluster.cpus=64", "cluster.gpus=8", "cluster.gpu_memory_gb=80", "cluster.memory_gb=900"]
    done = triptych_here("run", recipe_path, *EIGHT_B, *machine, "--plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "64 CPU cores, 8 GPUs of 80.0 GB, 900.0 GB of memory" in done.stdout
    assert "8,000.0M parameters" in done.stdout
    # The first table is that of the trainings; RLHF's processes follow.
    row = next(line for line in done.stdout.splitlines() if "weights" in line)
    assert row.count("4.00") == 3, "pre-training, fine-tuning and the reward model on 8 GPUs each"
    assert "2 rollout" in done.stdout
    assert not (tmp_path / "run").exists()
    short = triptych_here(
        "run", recipe_path, *EIGHT_B, *machine[:2], "cluster.gpu_memory_gb=12", "--plan", cwd=tmp_path
    )
    assert short.returncode == 2
    assert "too little" in short.stderr


def test_a_plan_names_a_file_that_is_missing(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(recipe_path, ["cluster.cpus=8", "cluster.memory_gb=64", "cluster.gpus=0"])
    print_resource_plan(recipe)
    (recipe_path.parent / "text.txt").unlink()
    with pytest.raises(UserError, match=r"text\.txt"):
        print_resource_plan(recipe)
    assert "shares" in capsys.readouterr().out
