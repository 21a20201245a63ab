"""A run with one round and its judgements, and a stand-in for the loop's work that takes no time."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cluster.feedback import Completion, FeedbackPrompt, Ranking, open_feedback
from cluster.feedback.judged import records_of, write_records
from cluster.recipe.loop import Loop
from cluster.run.folder import RunFolder
from cluster.run.rounds import round_folder
from cluster.run.versions import Version, Versions
from pipelines.loop.rounds import Verdict
from pipelines.loop.service import run_loop
from tests.cluster.run.test_rounds import CHAIN, make

MADE_FROM = {"preferences": (), "reward": ("preferences",), "policy": ("reward",), "report": ("reward", "policy")}
SETTINGS = Loop(min_new=2)


def judge(root: Path, *people: str) -> None:
    """Stores a ranking of the run's one prompt by each of some people."""
    with open_feedback(RunFolder(root).feedback_url) as database:
        if not database.prompts():
            database.add_prompts([FeedbackPrompt(id="p", messages=[{"role": "user", "content": "?"}], split="train")])
            drawn = {"prompt_id": "p", "model": "sft", "weights": "0", "token_ids": [1]}
            database.add_completions([Completion(index=index, text=str(index), **drawn) for index in (0, 1)])
        first, second = (str(one.id) for one in database.prompts()[0].completions)
        database.add_rankings([Ranking(prompt_id="p", annotator=who, ranks={first: 1, second: 2}) for who in people])


class ScriptedWork(AbstractContextManager["ScriptedWork"]):
    """Fills the folders of the stages as a round does; fails a test in which a stage runs twice.

    Args:
        root: the run folder.
        said: the content of every folder, which is the name of the round.
        gates: whether the gates pass.
        better: whether the comparison passes.
    """

    def __init__(self, root: Path, said: str = "two", gates: bool = True, better: bool = True) -> None:
        self.run, self.said, self.passed = RunFolder(root), said, (gates, better)

    def __exit__(self, *error: object) -> None:
        pass

    def run_stage(self, name: str) -> None:
        folder = next(folder for folder, stage in CHAIN.items() if stage == name)
        found, mark = self.run.manifest(folder), f"{folder} {self.said}"
        assert found is None or found.fingerprint != mark, f"{folder} was done already"
        if folder == "preferences":
            out = self.run.begin(folder, mark)
            with open_feedback(self.run.feedback_url) as database:
                judged = database.peoples_judgements()
            write_records(records_of(judged, {("rankings", row.id or 0): 1 for row in judged.rankings}), out)
        make(self.run, folder, self.said, *MADE_FROM[folder])

    def gates(self, before: int) -> Verdict:
        assert (round_folder(self.run.root, before) / "reward" / "content").exists()
        return Verdict(self.passed[0], "as written", {"n": 1})

    def compare(self, live: Version) -> Verdict:
        assert (live.folder / "content").read_text() != self.said
        return Verdict(self.passed[1], "as written", {"n": 1})

    def try_out(self, version: Version, share: float) -> str:
        if self.said == "unserved":
            return "the run is not being served"
        (self.run.root / "on trial").write_text(f"{version.weights} {share}")
        return ""

    def promote(self, weights: str) -> dict[str, Any]:
        Versions(self.run, "policy").make_live(weights)
        return {}


def first_round(root: Path) -> None:
    """Makes a run whose first round has two rankings, and stores three more."""
    root.mkdir(exist_ok=True)
    judge(root, "ann", "bo")
    work = ScriptedWork(root, "one")
    for stage in CHAIN.values():
        work.run_stage(stage)
    judge(root, "cy", "di", "ed")


def one_round(root: Path) -> None:
    """Makes the second round as the command does."""
    run_loop(SETTINGS, RunFolder(root), lambda: ScriptedWork(root), rounds=1, poll=0.0)


def refused_round(root: Path) -> None:
    """Tries the same, and the gates stop it."""
    run_loop(SETTINGS, RunFolder(root), lambda: ScriptedWork(root, gates=False), rounds=1, poll=0.0)
