"""`triptych run --plan`: the resource plan as tables."""

from dataclasses import asdict, fields

from rich.console import Console
from rich.table import Table

from cluster.recipe.recipe import Recipe
from cluster.runtime.machine_memory import memory_needs
from cluster.runtime.memory import (
    parameters,
    served_models,
    trainings,
)
from cluster.runtime.plan import Allocation, Resources, make_plan
from cluster.runtime.rlhf_memory import engine_memory, gpu_layout, reward_memory
from cluster.runtime.training_memory import TrainingMemory, learner_memory, training_memory


def print_plan(recipe: Recipe, resources: Resources, console: Console) -> None:
    """Prints the memory that each stage would need and the share that it would get. Nothing is started.

    Args:
        recipe: the recipe.
        resources: the machine.
        console: the console to print on.

    Raises:
        UserError: the run does not fit; the table of memory has been printed before.
    """
    gpus = f"{resources.gpus:g} GPUs"
    if resources.gpus and resources.gpu_memory_gb:
        gpus += f" of {resources.gpu_memory_gb:.1f} GB"
    console.print(f"resources: {resources.cpus:g} CPU cores, {gpus}, {resources.memory_gb:.1f} GB of memory free")
    console.print(f"model: {parameters(recipe.model) / 1e6:,.1f}M parameters, rows of {recipe.model.context} tokens")
    console.print(_memory(recipe, on_gpu=resources.gpus > 0))
    if resources.gpus:
        console.print(_rlhf_memory(recipe))
    console.print(_shares(recipe, resources))
    if resources.gpus and resources.gpu_memory_gb:
        share = make_plan(recipe, resources).learner.gpus
        console.print(_layout(recipe, resources.gpus, share, resources.gpu_memory_gb))


def _memory(recipe: Recipe, on_gpu: bool) -> Table:
    sections = trainings(recipe)
    found = [training_memory(recipe, section, "cuda" if on_gpu else "cpu") for section in sections.values()]
    table = Table("GB", *sections, title=f"each training worker's {'GPU' if on_gpu else 'share of the machine'}")
    for part in fields(TrainingMemory):
        if any(values := [getattr(memory, part.name) for memory in found]):
            table.add_row(part.name, *(f"{value:.2f}" for value in values))
    table.add_row("total", *(f"{memory.total:.2f}" for memory in found))
    return table


def _rlhf_memory(recipe: Recipe) -> Table:
    table = Table("rlhf, GB on a GPU", "part", "each", title="each process of RLHF")
    learner = learner_memory(recipe)
    for name, value in asdict(learner).items():
        if value:
            table.add_row("learner", name, f"{value:.2f}")
    table.add_row("learner", "total", f"{learner.total:.2f}")
    for name, value in engine_memory(recipe).items():
        table.add_row("rollout", name, f"{value:.2f}")
    if recipe.rlhf.reward_models:
        table.add_row("reward", "total", f"{reward_memory(recipe):.2f}")
    return table


def _layout(recipe: Recipe, gpus: float, share: float, gpu_memory_gb: float) -> Table:
    table = Table("GPU", "processes of rlhf", "GB", f"of {gpu_memory_gb:.1f}", title="layout")
    for number, processes in enumerate(gpu_layout(recipe, gpus, share, gpu_memory_gb)):
        used = sum(process.memory_gb for process in processes)
        names = ", ".join(f"{process.name} ({process.memory_gb:.1f})" for process in processes)
        table.add_row(str(number), names, f"{used:.1f}", f"{used / gpu_memory_gb:.0%}")
    return table


def _shares(recipe: Recipe, resources: Resources) -> Table:
    plan, needs = make_plan(recipe, resources), memory_needs(recipe, on_gpu=resources.gpus > 0)
    table = Table("stage", "processes", "CPUs each", "GPUs each", "threads each", "machine GB", title="shares")

    def add(stage: str, processes: str, share: Allocation) -> None:
        need = f"{needs[stage]:.1f}" if stage in needs else ""
        table.add_row(stage, processes, f"{share.cpus:g}", f"{share.gpus:g}", str(share.threads), need)

    for name, section in trainings(recipe).items():
        add(name, f"{section.workers} trainer", plan.trainer)
    add("rlhf", f"{recipe.rlhf.fleet.rollout_actors} rollout", plan.rollout)
    # Functions and servers that give rewards take no share of the machine.
    if recipe.rlhf.reward_models:
        add("", f"{recipe.rlhf.reward_models} reward", plan.reward)
    add("", f"{recipe.rlhf.fleet.learner_workers} learner", plan.learner)
    add("serve", f"{served_models(recipe) * recipe.serve.max_replicas} replica", plan.replica)
    return table
