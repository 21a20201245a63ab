"""The table of stages: the function of each, by name.

A stage's module is imported when it runs, so that a command does not load the libraries of the others.
"""

from pathlib import Path

from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import Stage
from cluster.run.stages import Result, StageFunction, StageOutcome, run_stage


def make_corpus(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines.corpus import stage

    return stage.run(recipe, run, out)


def pretrain_base(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines import pretrain

    return pretrain.run(recipe, run, out)


def fine_tune(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines import sft

    return sft.run(recipe, run, out)


def collect_rankings(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines import collect

    return collect.run(recipe, run, out)


def train_reward_model(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines import reward_model

    return reward_model.run(recipe, run, out)


def reinforce_policy(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines.rlhf import stage as rlhf

    return rlhf.run(recipe, run, out)


def optimize_preferences(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines import dpo

    return dpo.run(recipe, run, out)


def evaluate_models(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    from pipelines.evaluate import stage

    return stage.run(recipe, run, out)


STAGE_FUNCTIONS: dict[str, StageFunction] = {
    "corpus": make_corpus,
    "pretrain": pretrain_base,
    "sft": fine_tune,
    "collect": collect_rankings,
    "reward": train_reward_model,
    "rlhf": reinforce_policy,
    "evaluate": evaluate_models,
    "dpo": optimize_preferences,
}


def run_named_stage(stage: Stage, recipe: Recipe, run: RunFolder) -> StageOutcome:
    """Runs or resumes a stage of the table; arguments, value and errors are those of `run_stage`."""
    return run_stage(stage, STAGE_FUNCTIONS[stage.name], recipe, run)
