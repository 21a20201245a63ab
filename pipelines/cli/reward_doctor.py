"""`triptych doctor --rewards`: tries cheap hacks on each reward of a recipe, before any training."""

from rich.console import Console

from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.rewards import Reward
from cluster.run.folder import RunFolder
from pipelines.evaluate.gaming.audit import REFUSED, RewardAudit
from pipelines.evaluate.gaming.cases import audit_rewards, cases_without_model
from pipelines.evaluate.gaming.hacks import HACKS
from pipelines.evaluate.stats import Proportion


def examine_rewards(console: Console, recipe: Recipe) -> int:
    """Prints the audit of every reward of a recipe.

    Returns:
        The number of rewards that RLHF would refuse, or that could not be audited.

    Raises:
        UserError: a function or a source of the recipe cannot be read.
    """
    run, problems = RunFolder(recipe.folder), 0
    found = cases_without_model(recipe, run)
    for reward in recipe.rlhf.rewards:
        if reward.kind in ("model", "environment"):
            console.print(f"the reward of kind {reward.kind} is not audited here: {_tested_by(reward, run)}")
    if recipe.rlhf.environment:
        console.print("the hacks are single answers: RLHF does not audit rewards of conversations of several turns")
    if not found.cases:
        console.print("no prompt of the recipe has an honest answer to compare with: nothing was audited")
        return 1
    for reward, name, audit in audit_rewards(recipe, found.cases):
        problems += _report(console, reward, name, audit, found.origin)
    return problems


def _report(console: Console, reward: Reward, name: str, audit: RewardAudit, origin: str) -> int:
    if audit.honest is None:
        console.print(f"{name}: no honest answer got a score; the last: {audit.reason}")
        return 1
    console.print(f"{name}: honest answers to {audit.cases} prompts score {audit.honest:.3g} on average ({origin})")
    if audit.failures:
        console.print(f"  {audit.failures} honest answers got no score; the last: {audit.reason}")
    if audit.constant:
        console.print("  every answer got the same score, hacks and honest ones: this audit cannot tell them apart")
        return 0
    for hack, result in audit.hacks.items():
        if result.mean is None:
            console.print(f"  {hack}: no score")
            continue
        verdict = "does not pay"
        if result.pays:
            refused = hack in REFUSED and hack not in reward.accept_hacks
            verdict = "PAYS, and RLHF refuses this reward" if refused else "PAYS"
            verdict += ", accepted in the recipe" if hack in reward.accept_hacks else ""
        console.print(
            f"  {hack}, {HACKS[hack]}: {verdict}; mean score {result.mean:.3g}, above honest answers "
            f"{_share(result.above)}, as good as the best {_share(result.satisfied)}"
            + (f"; {result.failures} got no score" if result.failures else ""),
            highlight=False,
        )
    return int(any(hack in REFUSED and hack not in reward.accept_hacks for hack in audit.paying))


def _share(share: Proportion | None) -> str:
    return "" if share is None else f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _tested_by(reward: Reward, run: RunFolder) -> str:
    if reward.kind == "environment":
        return "it is given to whole conversations"
    manifest = run.manifest("reward")
    if manifest is None:
        return "its probes run when it is trained"
    failing = [name for name, probe in manifest.metrics["trust"]["probes"].items() if probe["fails"]]
    return f"it fails its probes {', '.join(failing)}" if failing else "it passes its probes"
