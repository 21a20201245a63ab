"""The layout of a run: its stages in order, the subfolder that each fills, and which ones a recipe needs."""

from dataclasses import dataclass, replace

from cluster.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """A stage: its command's name, the subfolder of the run that it fills, and what decides what it makes.

    Attributes:
        sections: the recipe's sections that it reads.
        after: the subfolders that it builds on.
        purpose: what it does, in a few words.
    """

    name: str
    folder: str
    sections: tuple[str, ...]
    after: tuple[str, ...]
    purpose: str


STAGES = (
    Stage("corpus", "corpus", ("model", "corpus"), (), "gather, clean, tokenize and pack text"),
    Stage("pretrain", "base", ("model", "pretrain"), ("corpus",), "learn the next word"),
    Stage("sft", "sft", ("model", "sft"), ("base",), "learn to answer"),
    Stage("collect", "preferences", ("collect",), ("sft",), "sample answers and have them ranked"),
    Stage("reward", "reward", ("reward",), ("sft", "preferences"), "learn the ranking"),
    Stage("rlhf", "policy", ("rlhf", "collect", "sft"), ("sft", "reward"), "learn from the reward"),
    Stage(
        "evaluate",
        "report",
        ("evaluate",),
        ("base", "sft", "reward", "policy"),
        "compare models",
    ),
)
# What `triptych run` leaves out, as no later stage needs it.
ASIDE = (Stage("dpo", "dpo", ("dpo",), ("sft", "preferences"), "learn from the rankings themselves"),)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that the recipe needs, in order. Without text to pre-train on there is no corpus, and the base is
    model.start_from; without a reward model to follow, nothing is ranked."""
    stages: tuple[Stage, ...] = STAGES
    if not recipe.corpus.sources:
        base = replace(stage_of("base"), sections=("model",), purpose="take over the model to start from")
        stages = _without({"corpus"}, tuple(base if stage.folder == "base" else stage for stage in stages))
    return stages if recipe.rlhf.needs_reward_model else _without({"preferences", "reward"}, stages)


def _without(folders: set[str], stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(
        replace(stage, after=tuple(folder for folder in stage.after if folder not in folders))
        for stage in stages
        if stage.folder not in folders
    )


def stage_named(name: str) -> Stage:
    """The stage of that name (as on the command line)."""
    return next(stage for stage in (*STAGES, *ASIDE) if stage.name == name)


def stage_of(folder: str) -> Stage:
    """The stage that fills that folder of the run."""
    return next(stage for stage in (*STAGES, *ASIDE) if stage.folder == folder)


def command_of(folder: str) -> str:
    """The command that fills that subfolder; a subfolder that is no stage's is its own."""
    return next((stage.name for stage in (*STAGES, *ASIDE) if stage.folder == folder), folder)
