"""A visitor's training: its recipe, its preferences, and the stages `reward` and `rlhf` in the visitor's run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import ray

from actors.model.chat import Chat
from cluster import __version__, feedback
from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.recipe.base import Probe
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.fleet import FleetSettings
from cluster.recipe.rlhf.rewards import Reward
from cluster.recipe.serve import Story
from cluster.run.folder import Manifest, RunFolder, fingerprint
from cluster.run.layout import stages_of
from cluster.run.server_client import ask_server
from pipelines.data.preferences import rankings
from pipelines.data.prompts import split_prompts
from pipelines.stage_table import run_named_stage
from serve.pages.story import TrainingRequest

# The stages that the visitor's training takes from the run, and those that it has of its own.
SHARED_STAGES = ("corpus", "base", "sft")
OWN_STAGES = ("reward", "policy")
ANNOTATOR = "visitor"
HELD_OUT_SHARE = 0.2
# Prompts of an optimizer step of the reward model: 20 rankings are 4 steps a pass.
REWARD_BATCH = 4
MIN_RANKINGS = 4


def train(recipe: Recipe, run: RunFolder, branch: RunFolder, request: TrainingRequest) -> None:
    """Trains a reward model and a policy on a visitor's rankings, or resumes that, and serves the policy.

    Raises:
        UserError: a ranking names another prompt or other answers than there are.
        StageError: a stage failed.
    """
    own = visitor_recipe(recipe, branch, ray.cluster_resources().get("CPU", 1), request.gameable)
    link_stages(run, branch)
    stages = [stage for stage in stages_of(own) if stage.folder in OWN_STAGES]
    # PPO's critic starts from a reward model whatever the reward is.
    if any(stage.folder == "reward" for stage in stages):
        write_preferences(recipe, run, branch, request)
    for stage in stages:
        run_named_stage(stage, own, branch)
    ask_server(branch.root, "promote", {"model": "policy"})


def visitor_recipe(recipe: Recipe, branch: RunFolder, cpus: float, gameable: bool) -> Recipe:
    """Derives the recipe of a visitor's training: short, small, on half of the cores, in a folder of its own.

    Args:
        recipe: the recipe of the run.
        branch: the folder to train in.
        cpus: the cores of the cluster, of which the served models have the other half.
        gameable: whether the reward is the story's gameable function.
    """
    story = story_of(recipe)
    reward = Reward(kind="function", function=story.gameable) if gameable else Reward()
    return recipe.model_copy(
        update={
            "run": str(branch.root),
            "cluster": recipe.cluster.model_copy(update={"cpus": max(1, int(cpus // 2)), "gpus": 0}),
            "reward": recipe.reward.model_copy(
                update={
                    "epochs": story.epochs,
                    "batch_rows": REWARD_BATCH,
                    "micro_batch_rows": REWARD_BATCH,
                    "members": 1,
                    "curve": [],
                    "annotator_weights": {},
                }
            ),
            "rlhf": recipe.rlhf.model_copy(
                update={
                    "steps": story.steps,
                    "learning_rate": story.learning_rate or recipe.rlhf.learning_rate,
                    "rewards": [reward],
                    "environment": None,
                    "pretrain_mix": 0.0,
                    "stop": story.stop,
                    "fleet": FleetSettings(rollout_actors=1),
                    # A reward model of 20 rankings may well fail a probe: the page shows the result all the same.
                    "accept_probes": list(get_args(Probe)),
                    "checkpoint_every": story.steps,
                    "promote_every": story.promote_every,
                }
            ),
        }
    )


def link_stages(run: RunFolder, branch: RunFolder) -> None:
    """Links the stages that the visitor's training builds on into its folder."""
    branch.create()
    for folder in SHARED_STAGES:
        link = branch.path(folder)
        if run.path(folder).exists() and not link.is_symlink():
            link.symlink_to(Path("..") / folder)


def write_preferences(recipe: Recipe, run: RunFolder, branch: RunFolder, request: TrainingRequest) -> None:
    """Writes the stage `preferences` of a visitor's training: their rankings, a fifth of them held out.

    Raises:
        UserError: a ranking names another prompt or other answers than there are.
    """
    given = [ranking.model_dump() for ranking in request.rankings]
    inputs = {"sft": branch.require("sft").fingerprint}
    digest = fingerprint({"rankings": given, "inputs": inputs})
    found = branch.manifest("preferences")
    if found is not None and found.fingerprint == digest:
        return
    rows = ranking_rows(recipe, run, Chat.of(run.path("sft")), given)
    out = branch.begin("preferences", digest)
    rankings.write_rankings(rows, out / "rankings.parquet")
    metrics = {"rankings": len(rows), "tie_share": rankings.tie_share(rows)}
    branch.commit("preferences", Manifest("collect", digest, {}, inputs, __version__, 0.0, metrics))


def ranking_rows(
    recipe: Recipe, run: RunFolder, chat: Chat, given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Makes the rows of rankings.parquet from a visitor's rankings.

    Raises:
        UserError: a ranking names another prompt or other answers than there are.
    """
    split = split_prompts([one["prompt"] for one in given], HELD_OUT_SHARE, recipe.seed)
    rows = []
    with open_feedback(run.feedback_url) as database:
        for number, one in enumerate(given, start=1):
            prompt = database.prompt(one["prompt"])
            ids = {completion.id for completion in prompt.completions} if prompt else set()
            if prompt is None or not ids.issuperset(one["answers"]):
                raise UserError(f"the run has no prompt {one['prompt']!r} with the answers {one['answers']}")
            ranks = {str(answer): rank for answer, rank in zip(one["answers"], one["ranks"], strict=True)}
            ranking = feedback.Ranking(id=number, prompt_id=prompt.id, annotator=ANNOTATOR, ranks=ranks)
            completions = sorted(prompt.completions, key=lambda completion: completion.index)
            token_ids, end = chat.prompt(prompt.messages), chat.end_ids
            row = rankings.ranking_row(prompt, completions, ranking, token_ids, end, None)
            rows.append(row | {"split": split[prompt.id]})
    return rows


def story_of(recipe: Recipe) -> Story:
    """Returns the recipe's section `serve.story`, which a run with a story page has."""
    assert recipe.serve.story is not None
    return recipe.serve.story
