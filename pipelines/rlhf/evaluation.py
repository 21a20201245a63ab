"""Measures the policy on held-out prompts while RLHF trains it, and keeps the best one so far."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.rewards.pool import RewardWorkerPool
from actors.types import Failure, Prompt, Sampling
from cluster.errors import StageError
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.folder import SCRATCH
from pipelines.evaluate.held_out import sample_and_reward
from pipelines.evaluate.tasks.statistics import estimate
from pipelines.rlhf.setup import RlhfPrompts, held_out_prompts, require_held_out

# The name of the best policy's folder in the scratch folder, before its version.
BEST = "best_"
# Added to the run's seed: the same draws at every evaluation, which are none of the training's.
DRAWS = 7919


def evaluation_prompts(recipe: Recipe, chat: Chat) -> RlhfPrompts:
    """Chooses `rlhf.evaluation_prompts` prompts that RLHF does not train on.

    Prompts that the report does not measure come first: on the prompts by which the policy was chosen, its figures
    would be too good.

    Raises:
        UserError: there is none.
    """
    others = held_out_prompts(recipe, chat, limit=None)
    names, reported = list(others.rendered), recipe.evaluate.prompts
    require_held_out(recipe, chat, len(names))
    wanted = recipe.rlhf.evaluation_prompts
    own = names[reported:][:wanted]
    shared = names[:reported][::-1][: wanted - len(own)]
    chosen = [*own, *shared]
    if shared:
        Console().print(
            f"rlhf: {len(shared)} of the {len(chosen)} evaluation prompts are the report's too", markup=False
        )
    return RlhfPrompts({name: others.rendered[name] for name in chosen}, {name: others.inputs[name] for name in chosen})


@dataclass
class Evaluation:
    """The evaluations of one training.

    Attributes:
        settings: the settings of RLHF.
        prompts: held-out ones.
        seed: the seed of the run.
        out: the stage's folder, whose scratch folder holds the best policy.
        best: version and mean reward of the best policy; None before there is one.
    """

    settings: Rlhf
    prompts: Sequence[Prompt]
    seed: int
    out: Path
    best: dict[str, Any] | None = field(default=None)

    def due(self, step: int) -> bool:
        """Tells whether the policy is measured after a step: every `rlhf.evaluate_every` steps, and after the last."""
        every = self.settings.evaluate_every
        return every is not None and ((step + 1) % every == 0 or step + 1 == self.settings.steps)

    def measure(self, fleet: Fleet, pools: Sequence[RewardWorkerPool]) -> dict[str, Any]:
        """Draws an answer to each prompt by the newest weights, with the same seed each time, and rewards it.

        Returns:
            The mean reward with its 95 % interval, and the answers that it is of and that got no reward.

        Raises:
            StageError: no answer got a reward.
        """
        fleet.wait_synced()
        sampling = self.settings.sampling
        draws = Sampling(1, sampling.temperature, sampling.max_tokens, self.seed + DRAWS)
        at_once, own = self.settings.prompts_per_step, self.settings.environment_weight
        verdicts = [
            verdict
            for group in sample_and_reward(fleet, pools, self.prompts, draws, at_once, own).rewards
            for verdict in group
        ]
        rewards = [verdict for verdict in verdicts if not isinstance(verdict, Failure)]
        if not rewards:
            raise StageError(f"no answer to a held-out prompt got a reward; the last: {verdicts[-1]}")
        found = asdict(estimate(rewards, [1] * len(rewards)))
        names = {"value": "", "low": "_low", "high": "_high", "n": "_n"}
        figures = {f"held_out_reward{end}": found[name] for name, end in names.items() if found[name] is not None}
        return figures | {"held_out_failed": len(verdicts) - len(rewards)}

    def keep_best(self, version: int, figures: Mapping[str, Any], export: Callable[[Path], object]) -> None:
        """Exports the policy of a version if it is better than all before it and the best is to be kept."""
        reward = figures["held_out_reward"]
        if self.settings.keep != "best" or (self.best and self.best["reward"] >= reward):
            return
        folder = self._folder(version)
        # A killed attempt may have left the folder.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        export(folder)
        self.best = {"version": version, "reward": reward}

    def restore(self, best: dict[str, Any] | None) -> None:
        """Takes the best policy that a checkpoint names, and removes others."""
        self.best = best
        if best and not self._folder(best["version"]).is_dir():
            Console().print(f"rlhf: the best policy so far, of step {best['version']}, is lost", markup=False)
            self.best = None
        self.prune()

    def prune(self) -> None:
        """Removes all exported policies but the best. To be called once a checkpoint names it."""
        for folder in (self.out / SCRATCH).glob(f"{BEST}*"):
            if self.best is None or folder != self._folder(self.best["version"]):
                shutil.rmtree(folder)

    def write_best(self) -> int | None:
        """Copies the best policy into the stage's folder; returns its version, or None if there is none."""
        if self.best is None:
            return None
        shutil.copytree(self._folder(self.best["version"]), self.out, dirs_exist_ok=True)
        return int(self.best["version"])

    def _folder(self, version: int) -> Path:
        return self.out / SCRATCH / f"{BEST}{version}"


def held_out_summary(rows: Sequence[Mapping[str, Any]], kept: int | None) -> dict[str, Any]:
    """Summarizes the evaluations for the manifest.

    Args:
        rows: the metrics of all steps.
        kept: the number of steps that the kept policy has learned from; None where a limit ended the training.

    Returns:
        The reward of the fine-tuned model and that of the kept policy, with their intervals, and its step.
    """
    before = _rewards(rows[0], before=True)
    return before | ({} if kept is None else {"kept_step": kept, **_rewards(rows[kept - 1], before=False)})


def _rewards(row: Mapping[str, Any], before: bool) -> dict[str, Any]:
    names = [name for name in row if name.startswith("held_out_reward") and name.endswith("_before") == before]
    return {name: row[name] for name in names}
