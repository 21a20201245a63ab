"""Who gets which part of the machine, decided before anything starts."""

import math
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from cluster.failures import UserError
from cluster.recipe import Cluster, FineTuning, Model, Recipe, Training
from cluster.shape import Shape, shape_of

GB = 1e9
# Three language models, and the reward model, which needs no engine.
ENGINES = 3
REPLICAS = ENGINES + 1

# Allowed for a process before it holds a model: Python, torch, Ray, and vLLM in an engine.
PROCESS_GB = 0.7
# Allowed for Ray's own processes on the head node, dashboard off.
RAY_GB = 0.8
# The engine's cache on a CPU (VLLM_CPU_KVCACHE_SPACE).
CACHE_GB = 1.0
# float32 weights, gradients and the two moments of AdamW.
TRAINED_BYTES = 16
# float32 weights.
HELD_BYTES = 4
# A logit, its softmax and its gradient in float32: what dominates the activations of a small model.
LOGIT_BYTES = 12
# Training makes no more than so many at a time (actors.model.language), 0.8 GB and on a GPU 26: in chunks it is slower.
LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 31}
# Kept for the backward pass, per token, layer and unit of width. Measured on a GPU with 2,048 tokens a row: 57 at 135M
# and 1B parameters, 94 in float32. That is more than the 34 of Korthikanti et al. 2022, section 4.1: SwiGLU has a third
# matrix, and autocast leaves the residual stream and norms in 32 bits, as is the input that a layer is done again from.
# Measured on a CPU with 256: 114 to 126 in bfloat16 and 172 to 183 in float32, from 15M to 135M; what is freed between
# the passes stays with the process.
ACTIVATION_BYTES = {"cuda": {"bfloat16": 58, "float32": 96}, "cpu": {"bfloat16": 126, "float32": 184}}
RECOMPUTED_BYTES = 4
# A copy of every weight in 16 bits, of which autocast makes its products.
CAST_BYTES = {"bfloat16": 2, "float32": 0}


@dataclass(frozen=True)
class Share:
    """What one worker or actor gets: Ray's logical CPUs and GPUs, and the threads torch may use."""

    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class Plan:
    """The shares of a run. Those of one stage can all be scheduled at once, with room for tasks beside them."""

    cpus: float
    gpus: float
    memory_gb: float
    trainer: Share
    data_cpus: float
    rollout: Share
    reward: Share
    learner: Share
    replica: Share


@dataclass(frozen=True)
class Resources:
    """What there is to share out.

    Attributes:
        cpus: cores of all machines together.
        cores: cores of the largest machine.
        gpus: GPUs of all machines together.
        memory_gb: memory that is free, in 1e9 bytes.
        gpu_memory_gb: memory of the smallest GPU, or None if it is not known.
    """

    cpus: float
    cores: int
    gpus: float
    memory_gb: float
    gpu_memory_gb: float | None = None


@dataclass(frozen=True)
class TrainingMemory:
    """What one training worker holds where its model lies, in GB."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    casts: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


def training_memory(recipe: Recipe, section: Training, device: str) -> TrainingMemory:
    """Worked out for a model of P parameters in float32, sharded by FSDP2 over W workers.

    - Weights 4 P / W bytes; gradients as many and AdamW's moments twice as many, of the adapters alone with LoRA.
    - Gathered, with several workers: weights of two layers (one at work, the next on its way) and of the embedding, and
      the gradients of one layer and of the embedding before they are scattered.
    - Casts: with bfloat16, 2 P bytes that autocast keeps for the backward pass, unless activations are recomputed.
    - Activations: 58 bytes a token, layer and unit of width, 96 in float32, and on a CPU 126 and 184; where they are
      recomputed, 4, and one layer's 58. On a CPU, recomputing saves less than that says: 135M parameters held a third
      more.
    - Logits: 12 bytes each.

    Args:
        device: cpu or cuda.
    """
    size, shape = parameters(recipe.model), _shape_of(recipe.model)
    trained = trained_parameters(recipe.model, section)
    tokens = section.micro_batch_rows * recipe.model.context
    embedding = recipe.model.vocabulary * shape.hidden
    layer = (size - embedding) / shape.layers
    each = ACTIVATION_BYTES[device][section.precision]
    kept = RECOMPUTED_BYTES * shape.layers + each if section.recompute_activations else each * shape.layers
    return TrainingMemory(
        weights=HELD_BYTES * size / section.workers / GB,
        gradients=HELD_BYTES * trained / section.workers / GB,
        optimiser=2 * HELD_BYTES * trained / section.workers / GB,
        gathered=HELD_BYTES * (3 * layer + 2 * embedding) / GB if section.workers > 1 else 0.0,
        casts=0.0 if section.recompute_activations else CAST_BYTES[section.precision] * size / GB,
        activations=tokens * shape.hidden * kept / GB,
        logits=_logits_gb(recipe.model, section.micro_batch_rows, device),
    )


def make_plan(recipe: Recipe, resources: Resources | None = None) -> Plan:
    """Shares out the connected Ray cluster, or the resources given.

    On a CPU the logical shares of rollouts, reward and learner add up to half of the machine, so that a fleet can grow
    and tasks run beside it; the threads are what uses the cores. On GPUs each gets one while there are enough,
    else as many as necessary share one.

    Raises:
        UserError: it does not fit; the message says what is short and what to do.
    """
    found = resources or _connected()
    if recipe.cluster.memory_gb:
        found = replace(found, memory_gb=recipe.cluster.memory_gb)
    workers = max(section.workers for section in trainings(recipe).values())
    actors = recipe.rlhf.fleet_limit
    _check_counts(recipe, found)
    _check_memory(recipe, found)
    # A task that reads takes a whole CPU by default: with less left over, training would wait for its data for ever.
    data_cpus = _down(min(found.cpus / 2, max(1.0, found.cpus / 4)))
    trainer_cpus = min((found.cpus - data_cpus) / workers, found.cores)
    actor_cpus = min(found.cpus / (2 * (actors + 2)), found.cores)
    actor_gpus = _gpu_share(found.gpus, actors + 2)
    every_core = found.cores
    replicas = REPLICAS * recipe.serve.max_replicas
    return Plan(
        cpus=found.cpus,
        gpus=found.gpus,
        memory_gb=found.memory_gb,
        trainer=Share(_down(trainer_cpus), min(1.0, found.gpus), max(1, min(every_core, int(found.cpus // workers)))),
        data_cpus=data_cpus,
        rollout=Share(_down(actor_cpus), actor_gpus, max(1, min(every_core, int(found.cpus // actors)))),
        reward=Share(_down(actor_cpus), actor_gpus, every_core),
        learner=Share(_down(actor_cpus), actor_gpus, every_core),
        replica=Share(
            _down(min(found.cpus / (2 * replicas), found.cores)),
            _gpu_share(found.gpus, replicas),
            max(1, every_core // replicas),
        ),
    )


def resources_here(settings: Cluster) -> Resources:
    """What this machine has, without starting Ray; the recipe's cluster section may allow less."""
    gpu_memory = _gpu_memory_gb()
    gpus = len(gpu_memory) if settings.gpus is None else settings.gpus
    cores = settings.cpus or len(os.sched_getaffinity(0))
    available = psutil.virtual_memory().available / GB
    return Resources(cores, cores, gpus, available, settings.gpu_memory_gb or min(gpu_memory, default=None))


def object_store_gb(recipe: Recipe) -> float:
    """Shared memory for a local cluster: two versions of the weights in flight, and blocks of data."""
    return 1.0 + 2 * HELD_BYTES * parameters(recipe.model) / GB


def memory_needs(recipe: Recipe, on_gpu: bool = False) -> dict[str, float]:
    """The most memory each kind of stage holds on the machine, in GB, for a model of P parameters.

    - Every process: 0.7; Ray itself: 0.8; the object store as it is used: 8 P bytes (two versions of the weights).
    - Training: what each worker holds by `training_memory`.
    - Reinforcement: the learner as one training worker, its reference and every reward model 4 P each, and every
      rollout engine 4 P and its cache of 1 GB.
    - Serving: three engines, and the reward model as in reinforcement, for as many replicas as there may be.

    With GPUs the models lie there, and the machine itself holds the processes and one copy of the weights.
    """
    size = parameters(recipe.model) / GB
    logits = recipe.model.context * recipe.model.vocabulary * LOGIT_BYTES / GB
    engines, replicas = recipe.rlhf.fleet_limit, REPLICAS * recipe.serve.max_replicas
    ray = RAY_GB + 2 * HELD_BYTES * size
    if on_gpu:
        host = HELD_BYTES * size
        training = {name: ray + host + part.workers * PROCESS_GB for name, part in trainings(recipe).items()}
        return {**training, "rlhf": ray + host + (engines + 2) * PROCESS_GB, "serve": ray + replicas * PROCESS_GB}
    needs = {
        name: ray + part.workers * (PROCESS_GB + training_memory(recipe, part, "cpu").total)
        for name, part in trainings(recipe).items()
    }
    learner = PROCESS_GB + (TRAINED_BYTES + HELD_BYTES) * size + recipe.rlhf.micro_batch_rows * logits
    engine = PROCESS_GB + CACHE_GB + HELD_BYTES * size
    reward = PROCESS_GB + recipe.reward.members * HELD_BYTES * size
    needs["rlhf"] = ray + learner + reward + engines * engine
    needs["serve"] = ray + recipe.serve.max_replicas * (ENGINES * engine + reward)
    return needs


def parameters(model: Model) -> int:
    """How many parameters the recipe's model has, roughly: by the files it starts from, its shape or its `size`."""
    start = Path(model.start_from) if model.start_from else None
    if start is not None and start.is_file():
        # GGUF files of four bits hold about 0.56 bytes a parameter; wider ones are overestimated, on the safe side.
        return round(start.stat().st_size / 0.56)
    if start is not None and start.is_dir():
        return sum(file.stat().st_size for file in start.glob("*.safetensors")) // 2
    if model.hidden and model.layers:
        return 12 * model.layers * model.hidden**2 + model.vocabulary * model.hidden
    return model.parameters


def trained_parameters(model: Model, section: Training) -> int:
    """How many parameters have a gradient: all, or those of adapters beside the seven matrices of each layer."""
    lora = section.lora if isinstance(section, FineTuning) else None
    if lora is None:
        return parameters(model)
    shape = _shape_of(model)
    return shape.layers * lora.rank * (11 * shape.hidden + 3 * shape.intermediate)


def _logits_gb(model: Model, rows: int, device: str) -> float:
    return min(rows * model.context * model.vocabulary, LOGITS_AT_ONCE[device]) * LOGIT_BYTES / GB


def _shape_of(model: Model) -> Shape:
    """Of a model that training starts from, a shape with as many parameters."""
    return shape_of(model.model_copy(update={"size": f"{max(1, parameters(model) // 1000)}K"}))


def _check_counts(recipe: Recipe, found: Resources) -> None:
    for name, section in trainings(recipe).items():
        if section.workers > found.cpus:
            raise UserError(f"{name}.workers={section.workers} is more than the {found.cpus:g} CPU cores there are")
        if 0 < found.gpus < section.workers:
            raise UserError(f"{name}.workers={section.workers} needs as many GPUs and there are {found.gpus:g}")
    actors = recipe.rlhf.fleet_limit
    if actors > 8 * found.cpus:
        name = "most_rollout_actors" if recipe.rlhf.most_rollout_actors else "rollout_actors"
        raise UserError(f"rlhf.{name}={actors} is too many for {found.cpus:g} CPU cores: at most 8 a core")


def _check_memory(recipe: Recipe, found: Resources) -> None:
    needs = memory_needs(recipe, on_gpu=found.gpus > 0)
    stage, most = max(needs.items(), key=lambda item: item[1])
    size = f"a model of {parameters(recipe.model) / 1e6:,.1f}M parameters"
    if most > found.memory_gb:
        raise UserError(
            f"too little memory: {stage} with {size} needs about {most:.1f} GB and {found.memory_gb:.1f} GB are free; "
            "choose a smaller model.size, fewer rlhf.rollout_actors or smaller micro_batch_rows, or a larger machine"
        )
    if not found.gpus or found.gpu_memory_gb is None:
        return
    for name, section in trainings(recipe).items():
        on_each = training_memory(recipe, section, "cuda").total
        if on_each > found.gpu_memory_gb:
            raise UserError(
                f"too little GPU memory: {name} with {size} needs about {on_each:.1f} GB on each of "
                f"{section.workers} GPUs and {found.gpu_memory_gb:.1f} GB are there; set more {name}.workers, fewer "
                f"{name}.micro_batch_rows, {name}.recompute_activations=true or a smaller model.size"
            )


def trainings(recipe: Recipe) -> dict[str, Training]:
    """The sections of the stages that train."""
    found: dict[str, Training] = {"pretrain": recipe.pretrain, "sft": recipe.sft, "reward": recipe.reward}
    return found | ({"dpo": recipe.dpo} if recipe.dpo else {})


def _gpu_share(gpus: float, processes: int) -> float:
    """One GPU each, or a fraction such that the processes fit when equally many share each GPU."""
    if gpus == 0:
        return 0.0
    return _down(1 / math.ceil(processes / gpus)) if processes > gpus else 1.0


def _down(share: float) -> float:
    """Rounded down to hundredths: sums of shares never exceed the whole."""
    return math.floor(share * 100 + 1e-9) / 100


def _connected() -> Resources:
    import ray

    if not ray.is_initialized():
        raise RuntimeError("make_plan without resources needs a Ray connection")
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = int(max(node.get("CPU", 1) for node in nodes))
    # Ray divides what was free when it started between its heap and its object store: unlike a reading of now, the sum
    # stays the same throughout the run.
    memory = (total.get("memory", 0) + total.get("object_store_memory", 0)) / GB
    return Resources(total.get("CPU", 1), cores, total.get("GPU", 0), memory)


def _gpu_memory_gb() -> list[float]:
    """Memory of every NVIDIA GPU that this process may use."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (subprocess.SubprocessError, OSError):
        return []
    found = [float(line) * 2**20 / GB for line in lines if line.replace(".", "").isdigit()]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if allowed is None else found[: len([name for name in allowed.split(",") if name.strip()])]
