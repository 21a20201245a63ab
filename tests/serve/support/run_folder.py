"""A run folder in the stages' format, halfway through: with curves, figures, samples and lineage."""

import fcntl
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import STAGES
from cluster.run.metrics import MetricsWriter
from cluster.trace import ActorStatus, PromptTrace, Span, StepTrace, TraceWriter

HOSTILE = "<img src=x onerror='window.hacked = 1'>"


def write_run(root: Path, finished: int = 5) -> RunFolder:
    """Writes the first stages finished and the next begun, with 200 steps of a falling loss in each."""
    run, marks = RunFolder(root), {}
    for index, stage in enumerate(STAGES[: finished + 1]):
        out = run.begin(stage.folder, f"mark of {stage.folder} 0123456789")
        writer = MetricsWriter(out)
        for step in range(200):
            writer.write(step, loss=4 * math.exp(-step / 60) + 0.3, held_out_loss=4 * math.exp(-step / 50), note="x")
        if stage.folder == "sft":
            sample = {"given": f"{HOSTILE}?", "written": HOSTILE, "wanted": "Lima."}
            writer.write(200, samples=[sample, sample])
        if stage.folder == "policy":
            tokens = [[HOSTILE, 1.7], [" is", -0.6], [" Lima", 0.0], ["Who?", None]]
            answers = [{"reward": 1.5, "tokens": tokens}, {"reward": -0.5, "tokens": tokens}]
            writer.write(200, rollouts=[{"given": f"{HOSTILE}?", "answers": answers}])
            write_trace(out)
        if stage.folder == "report":
            answer = {"text": HOSTILE, "right": True, "stopped": True}
            rows = [
                {"kind": "capital", "question": f"{HOSTILE} {n}?", "answers": dict.fromkeys(("base", "sft"), answer)}
                for n in range(60)
            ]
            (out / "answers.json").write_text(json.dumps(rows))
        if index == finished:
            break
        accuracy = {"value": 0.91, "low": 0.85, "high": 0.95, "n": 88}
        metrics = {"tokens": 1_234_567, "accuracy": accuracy, "base": {"right": accuracy, "verdict": "good"}}
        mark = run.partial_fingerprint(stage.folder) or ""
        inputs = {folder: marks[folder] for folder in stage.after}
        weights = "0123456789abcdef" if stage.folder in ("base", "sft", "reward", "policy") else None
        run.commit(stage.folder, Manifest(stage.name, mark, {}, inputs, "1.0", 75.0, metrics, weights))
        marks[stage.folder] = mark
    return run


def write_trace(folder: Path) -> None:
    """Writes two steps of four prompts each; one of two rollout actors is lost in the first step and replaced."""
    writer = TraceWriter(folder)
    for step in (8, 9):
        begin, first, second = 4.0 * step, [f"1:{HOSTILE}", "1:b"], ["1:c", "1:d"]
        late = "rollout 10" if step == 9 else "rollout 2"
        spans = [
            Span("rollout 0", "draw", begin, begin + 1.5, first, 3000),
            Span(late, "draw", begin + 0.5, begin + 2, second, 1500),
            Span("rewards", "reward", begin + 2, begin + 2.25, [*first, *second]),
            Span("learner", "learn", begin + 2.25, begin + 3.75, [*first, *second]),
            Span("learner", "publish", begin + 3.75, begin + 4),
        ]
        if step == 8:
            spans[1:1] = [Span("rollout 1", "draw", begin, begin + 0.5, second, lost=True)]
        handed = [PromptTrace(name, begin, begin + 2, 750, int(name == "1:d")) for name in (*first, *second)]
        actors = [ActorStatus("rollout 0", "ready", step + 1), ActorStatus(late, "stale", step)]
        writer.write(StepTrace(step, begin, begin + 4, 4, spans, handed, actors))


@contextmanager
def at_work(run: RunFolder) -> Iterator[None]:
    """Holds the run's lock, the same as a process that works on the run."""
    with (run.root / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1\n")
        file.flush()
        yield
