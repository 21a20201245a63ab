"""The state machine of the loop: each step once, in order, whatever a kill cuts short."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.feedback import COMPARED, Completion, FeedbackPrompt, Ranking, Thumb, open_feedback
from cluster.feedback.judged import judgement_changes, trace_judgements
from cluster.run.folder import RunFolder
from cluster.run.rounds import kept_rounds, present_round, round_folder
from cluster.run.trail import Approval, add_decision, answer_round, open_round, read_answer, read_trail
from cluster.run.versions import Versions
from pipelines.loop.rounds import begin_round, next_step
from pipelines.loop.service import describe_loop, run_loop, waits_for
from pipelines.loop.trial import judge_trial, votes_between
from serve.pages.runs import describe_judgements
from tests.cluster.run.test_rounds import content, whole
from tests.helpers import ROOT, wait_until
from tests.pipelines.loop import scripted
from tests.pipelines.loop.scripted import SETTINGS, ScriptedWork, first_round, judge, one_round, refused_round

# A process without threads that forks a child for each number of calls that change what is there, after which the child
# is killed.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from tests.pipelines.loop import scripted
left = [0]
def counted(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
# A kill loses nothing that was written, and a power cut is not tested.
os.fsync = lambda _: None
start = Path(sys.argv[1]) / "start"
scripted.first_round(start)
for calls in range(1000):
    root = Path(sys.argv[1]) / str(calls)
    shutil.copytree(start, root)
    if (child := os.fork()) == 0:
        left[0] = calls
        for name in ("rename", "replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        getattr(scripted, sys.argv[2])(root)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    first_round(tmp_path)
    return tmp_path


def steps(root: Path) -> list[tuple[int, str, str]]:
    return [(one.round, one.step, one.decision) for one in read_trail(root)]


def live(root: Path) -> str:
    return (Versions(RunFolder(root), "policy").live().folder / "content").read_text()


PROMOTED = [(2, "begin", "begun"), (2, "gates", "passed"), (2, "compare", "passed"), (2, "end", "promoted")]
KEPT = [(2, "begin", "begun"), (2, "gates", "stopped"), (2, "end", "kept")]


def test_a_round_that_passes_takes_over(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_round(root)
    assert steps(root) == PROMOTED
    assert (live(root), content(root)) == ("two", whole("two"))
    assert content(round_folder(root, 1)) == whole("one")
    assert next_step(RunFolder(root), SETTINGS) == "wait"
    shown = capsys.readouterr().out
    assert "round 2   begin    begun: 3 rankings are newer" in shown
    assert "round 2   end      promoted: the policy" in shown
    assert begin_round(RunFolder(root), SETTINGS) is None
    assert "waiting for 2 new judgements (loop.min_new): 0 there" in describe_loop(RunFolder(root), SETTINGS)


@pytest.mark.parametrize("stopped_by", ["gates", "compare"])
def test_a_round_that_fails_is_set_aside_and_its_judgements_are_not_new_again(root: Path, stopped_by: str) -> None:
    run = RunFolder(root)
    work = ScriptedWork(root, gates=stopped_by != "gates", better=stopped_by != "compare")
    run_loop(SETTINGS, run, lambda: work, rounds=1, poll=0.0)
    assert steps(root)[-2:] == [(2, stopped_by, "stopped"), (2, "end", "kept")]
    assert (live(root), content(root)) == ("one", whole("one"))
    assert kept_rounds(root) == [1, 2]
    assert judgement_changes(run, "preferences").total == 0
    # A judgement that the present round used, and that had changed in the round set aside, is not new either.
    judge(root, "flo", "gus")
    run_loop(SETTINGS, run, lambda: ScriptedWork(root, "three"), rounds=1, poll=0.0)
    assert steps(root)[-1] == (3, "end", "promoted")
    assert (live(root), content(root)) == ("three", whole("three"))


def test_judgements_deleted_before_a_refused_round_count_as_deleted_once(root: Path) -> None:
    run = RunFolder(root)
    with open_feedback(run.feedback_url) as database:
        database.exclude("ann")
    assert judgement_changes(run, "preferences").gone == 1
    refused_round(root)
    assert (present_round(root), judgement_changes(run, "preferences").total) == (1, 0)


def test_a_policy_waits_for_people_and_takes_over_when_they_approve(root: Path) -> None:
    run, settings = RunFolder(root), SETTINGS.model_copy(update={"approve": "people"})
    thread = threading.Thread(
        target=run_loop, args=(settings, run, lambda: ScriptedWork(root)), kwargs={"rounds": 1, "poll": 0.01}
    )
    thread.start()
    wait_until(lambda: next_step(run, settings) == "approve", 20, "the round to wait")
    assert live(root) == "one"
    # A server that starts meanwhile does not serve a policy that is not decided on.
    assert (Versions(run, "policy").start().folder / "content").read_text() == "one"
    with pytest.raises(UserError, match="in the loop by process"):
        one_round(root)
    answer_round(root, Approval(2, True, "Ann"))
    thread.join(20)
    assert steps(root) == PROMOTED
    assert read_trail(root)[-1].why.endswith("approved by Ann")
    assert live(root) == "two"


def test_a_round_that_somebody_refuses_is_set_aside(root: Path) -> None:
    run, settings = RunFolder(root), SETTINGS.model_copy(update={"approve": "people"})
    assert begin_round(run, settings)
    answer_round(root, Approval(2, False, "Ann"))
    assert next_step(run, settings) == "set aside"
    run_loop(settings, run, lambda: ScriptedWork(root), rounds=1, poll=0.0)
    assert steps(root) == [(2, "begin", "begun"), (2, "end", "kept")]
    assert "refused by Ann" in read_trail(root)[-1].why
    # The next round asks anew.
    assert begin_round(run, settings)
    assert read_answer(root, 2) is None


def test_a_round_that_another_command_changed_is_given_up(root: Path) -> None:
    run = RunFolder(root)
    assert begin_round(run, SETTINGS)
    shutil.copytree(
        root / "rounds" / "1" if (root / "rounds").exists() else root / "preferences", root / "rounds" / "7"
    )
    run_loop(SETTINGS, run, lambda: ScriptedWork(root), rounds=1, poll=0.0)
    assert steps(root)[-1] == (2, "end", "given up")


def test_a_line_that_a_kill_cut_short_counts_for_nothing(root: Path) -> None:
    begun = begin_round(RunFolder(root), SETTINGS)
    assert begun
    path = root / "loop" / "decisions.jsonl"
    with path.open("a") as file:
        file.write('{"round": 2, "st')
    assert read_trail(root) == [begun]
    add_decision(root, begun)
    assert read_trail(root) == [begun, begun]
    path.write_text("what?\n")
    with pytest.raises(UserError, match="is damaged"):
        read_trail(root)


def thumbs(root: Path, up: int, down: int, weights: str) -> None:
    asked = [{"role": "user", "content": "?"}]
    with open_feedback(RunFolder(root).feedback_url) as database:
        for number in range(up + down):
            said = {"messages": asked, "answer": "!", "weights": weights, "model": "canary"}
            database.save_thumb(Thumb(request=f"{weights} {number}", caller="", good=number < up, **said))


@pytest.mark.parametrize(("up", "end"), [(9, "promoted"), (0, "kept")])
def test_a_policy_on_trial_takes_over_or_is_rolled_back_by_its_thumbs(root: Path, up: int, end: str) -> None:
    run, settings = RunFolder(root), SETTINGS.model_copy(update={"canary_share": 0.25, "canary_thumbs": 9})
    thread = threading.Thread(
        target=run_loop, args=(settings, run, lambda: ScriptedWork(root)), kwargs={"rounds": 1, "poll": 0.05}
    )
    thumbs(root, 0, 20, "policy two")
    thread.start()
    wait_until(lambda: next_step(run, settings) == "canary", 20, "the trial to begin")
    assert "is on trial until" in waits_for(run, settings)
    wait_until(lambda: (root / "on trial").read_text() == "policy two 0.25", 20, "the server to be told")
    thumbs(root, 9, 1, "policy one")
    with open_feedback(run.feedback_url) as database:
        # The thumbs before the trial were for something else.
        for number in range(20):
            database.remove_thumb(f"policy two {number}", "")
    thumbs(root, up, 9 - up, "policy two")
    thread.join(20)
    assert (root / "on trial").read_text() == "policy one 0.0"
    assert steps(root)[-3:] == [
        (2, "trial", "begun"),
        (2, "canary", "passed" if end == "promoted" else "rolled back"),
        (2, "end", end),
    ]
    assert f"{up} of 9 thumbs up, and 9 of 10 for the live policy" in read_trail(root)[-2].why
    assert live(root) == ("two" if end == "promoted" else "one")


def compared(root: Path, weights: tuple[str, str], won: bool | None, count: int) -> None:
    """Stores votes of one person on answers of two versions, as the compare page does; a `won` of None is a tie."""
    with open_feedback(RunFolder(root).feedback_url) as database:
        for number in range(count):
            name = f"{COMPARED}{weights} {won} {number}"
            database.add_prompts([FeedbackPrompt(id=name, messages=[], details={"compare": "ann"})])
            sides = [
                Completion(prompt_id=name, index=index, text=one, token_ids=[], model=one, weights=one)
                for index, one in enumerate(weights)
            ]
            first, second = map(str, database.add_completions(sides))
            ranks = {first: 1, second: 1 if won is None else 2} if won is not False else {first: 2, second: 1}
            database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks))


def test_votes_against_a_policy_on_trial_roll_it_back(root: Path) -> None:
    new, live_one = "policy two", "policy one"
    with open_feedback(RunFolder(root).feedback_url) as database:
        compared(root, (new, live_one), False, 7)
        compared(root, (new, live_one), None, 2)
        compared(root, (new, "sft"), True, 5)
        judged = database.peoples_judgements()
        votes = votes_between(database, judged.votes, new, live_one)
    assert sorted(votes) == [-1] * 7 + [0] * 2
    assert judge_trial([], [1] * 9, new, live_one).passed
    assert judge_trial([], [], new, live_one).passed
    lost = judge_trial([], votes, new, live_one)
    assert not lost.passed
    assert "0 votes for it, 7 for the live policy, 2 ties" in lost.why


def test_a_deleted_judgement_is_gone_from_the_next_round_and_its_policies_are_named(root: Path) -> None:
    run, (ann, bo, *_) = RunFolder(root), trace_judgements(RunFolder(root), "preferences")[::-1]
    assert [(one.judgement.annotator, one.rounds, one.is_there) for one in (ann, bo)] == [
        ("ann", [1], True),
        ("bo", [1], True),
    ]
    with open_feedback(run.feedback_url) as database:
        with pytest.raises(UserError, match="no judgement 1 among the votes"):
            database.delete("votes", ann.judgement.id)
        database.delete("rankings", ann.judgement.id)
    one_round(root)
    assert "1 that the round used is gone" in read_trail(root)[0].why
    found = {one.judgement.annotator: (one.rounds, one.is_there) for one in trace_judgements(run, "preferences")}
    assert found == {"ann": ([1], False), "bo": ([1, 2], True)} | dict.fromkeys(("cy", "di", "ed"), ([2], True))
    shown = describe_judgements(run)
    assert (shown["count"], shown["gone"], shown["judgements"][0]["annotator"]) == (5, 1, "ann")


def test_a_policy_that_no_server_can_try_is_promoted_and_that_is_noted(root: Path) -> None:
    settings = SETTINGS.model_copy(update={"canary_share": 0.25})
    run_loop(settings, RunFolder(root), lambda: ScriptedWork(root, "unserved"), rounds=1, poll=0.0)
    assert steps(root)[-2:] == [(2, "trial", "skipped"), (2, "end", "promoted")]


@pytest.mark.slow
@pytest.mark.parametrize(("action", "expected"), [("one_round", PROMOTED), ("refused_round", KEPT)])
def test_a_kill_at_any_moment_changes_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, expected: list[tuple[int, str, str]]
) -> None:
    command = [sys.executable, "-c", KILLER, str(tmp_path), action]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, timeout=120, check=True)
    roots = sorted((folder for folder in tmp_path.iterdir() if folder.name != "start"), key=lambda one: int(one.name))
    assert len(roots) > 20
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for root in roots:
        if not read_trail(root) or open_round(read_trail(root)):
            getattr(scripted, action)(root)
        # Each step once; ScriptedWork fails where a stage is run twice.
        assert steps(root) == expected
        assert live(root) == ("two" if action == "one_round" else "one")
        assert content(root) == whole("two" if action == "one_round" else "one")
        assert kept_rounds(root) == ([1] if action == "one_round" else [1, 2])
        shutil.rmtree(root)
