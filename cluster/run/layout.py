"""The stages in order, the subfolder of the run folder that each fills, and the stages that a recipe needs."""

from dataclasses import dataclass, replace

from cluster.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: the name of its command.
        folder: the subfolder of the run folder that it fills.
        sections: the recipe's sections that decide its result.
        after: the subfolders that it builds on.
        purpose: a short description.
        judged: whether people's judgements are among its inputs.
    """

    name: str
    folder: str
    sections: tuple[str, ...]
    after: tuple[str, ...]
    purpose: str
    judged: bool = False


STAGES = (
    Stage("corpus", "corpus", ("model", "corpus"), (), "gather, clean, tokenize and pack text"),
    Stage("pretrain", "base", ("model", "pretrain"), ("corpus",), "pre-train the base model on the corpus"),
    Stage("sft", "sft", ("model", "sft"), ("base",), "fine-tune the base model on conversations"),
    Stage("collect", "preferences", ("collect",), ("sft",), "sample answers and have them ranked", judged=True),
    Stage("reward", "reward", ("reward",), ("sft", "preferences"), "train the reward model on the rankings"),
    Stage(
        "rlhf",
        "policy",
        ("rlhf", "collect", "sft"),
        ("sft", "reward"),
        "train the policy on rewards, by reinforcement learning",
    ),
    Stage(
        "evaluate",
        "report",
        ("evaluate",),
        ("base", "sft", "reward", "policy"),
        "compare the models and write the report",
    ),
)
# The subfolders that a round of judgements makes anew. A later one builds on those before it.
ROUND_FOLDERS = ("preferences", "reward", "policy", "report")
# Stages that `triptych run` leaves out, because no later stage needs them.
OPTIONAL_STAGES = (
    Stage("dpo", "dpo", ("dpo",), ("sft", "preferences"), "train on the rankings without a reward model"),
)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Lists the stages that a recipe needs, in order.

    Without `corpus.sources` there is no corpus and the base is `model.start_from`; without a reward model there are no
    preferences to collect.
    """
    stages: tuple[Stage, ...] = STAGES
    if not recipe.corpus.sources:
        base = replace(stage_of("base"), sections=("model",), purpose="copy the model to start from")
        stages = _without({"corpus"}, tuple(base if stage.folder == "base" else stage for stage in stages))
    return stages if recipe.rlhf.needs_reward_model else _without({"preferences", "reward"}, stages)


def _without(folders: set[str], stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(
        replace(stage, after=tuple(folder for folder in stage.after if folder not in folders))
        for stage in stages
        if stage.folder not in folders
    )


def stage_named(name: str) -> Stage:
    """Finds a stage by the name of its command."""
    return next(stage for stage in (*STAGES, *OPTIONAL_STAGES) if stage.name == name)


def stage_of(folder: str) -> Stage:
    """Finds a stage by its subfolder."""
    return next(stage for stage in (*STAGES, *OPTIONAL_STAGES) if stage.folder == folder)


def command_of(folder: str) -> str:
    """Finds the command that fills a subfolder; for a subfolder of no stage, its own name."""
    return next((stage.name for stage in (*STAGES, *OPTIONAL_STAGES) if stage.folder == folder), folder)
