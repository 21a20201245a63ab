"""The run page: the state, figures, curves and samples of each stage, and the inputs that its result was made from."""

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from cluster.errors import UserError
from cluster.feedback.judged import trace_judgements
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import STAGES, Stage
from cluster.run.metrics import NO_METRICS, read_metrics
from cluster.run.progress import NOW, is_number, progress_of
from cluster.run.round_differences import differences, differing_judgements, figure_text
from cluster.run.rounds import present_folders, round_folder
from cluster.run.trail import Decision, open_round, read_answer, read_trail
from cluster.trace import FILE as TRACE
from cluster.trace import read_trace
from serve.pages.file_cache import FileCache
from serve.pages.render import page, routes_of
from serve.pages.run_list import list_rounds, list_runs, report_of

# A drawing has not many more pixels across.
MAX_POINTS = 160
MAX_SAMPLES = 24
MAX_DECISIONS = 24
MAX_DIFFERENCES = 200
MODELS = ("base", "sft", "policy")
# The report is a page of its own, with its style inside: it reaches nothing else, and runs nothing.
REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
MAX_JUDGEMENTS = 1_000


def runs_router(folder: Path) -> APIRouter:
    """Returns the routes of the page at /runs."""
    router = APIRouter(prefix="/runs")
    run, files = RunFolder(folder), FileCache()

    @router.get("")
    def runs_page(request: Request) -> HTMLResponse:
        return page("runs.html", routes_of(request.app))

    @router.get("/data")
    def data() -> JSONResponse:
        # FastAPI would validate every value of a dictionary.
        return JSONResponse(describe(run, files))

    @router.get("/difference")
    def difference(first: int, second: int) -> dict[str, Any]:
        try:
            rows = differences(run, first, second)
        except UserError as error:
            raise HTTPException(404, str(error)) from error
        shown = [[one.stage, one.name, *map(figure_text, one.values)] for one in rows[:MAX_DIFFERENCES]]
        curves_of = {str(number): _policy_curves(run, number) for number in (first, second)}
        judgements = differing_judgements(run, first, second)
        return {"judgements": judgements, "rows": shown, "count": len(rows), "curves": curves_of}

    @router.get("/list")
    def runs() -> dict[str, Any]:
        return list_runs(run)

    @router.get("/report", response_class=HTMLResponse)
    def report(name: str = "", number: Annotated[int | None, Query(alias="round")] = None) -> HTMLResponse:
        path = report_of(run, name, number)
        if path is None:
            raise HTTPException(404, "there is no such report: `triptych evaluate` makes that of the present round")
        return HTMLResponse(path.read_text(encoding="utf-8"), headers=REPORT_HEADERS)

    @router.get("/judgements")
    def judgements() -> dict[str, Any]:
        return describe_judgements(run)

    return router


def describe_judgements(run: RunFolder) -> dict[str, Any]:
    """Returns the judgements that rounds learned from, with the policies that did; those that are gone come first."""
    found = sorted(trace_judgements(run, "preferences"), key=lambda one: one.is_there)
    rows = [
        {
            "source": one.judgement.source,
            "id": one.judgement.id,
            "annotator": one.judgement.annotator,
            "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(one.judgement.created)),
            "rounds": one.rounds,
            "gone": not one.is_there,
        }
        for one in found[:MAX_JUDGEMENTS]
    ]
    return {"judgements": rows, "count": len(found), "gone": sum(not one.is_there for one in found)}


def describe(run: RunFolder, files: FileCache | None = None) -> dict[str, Any]:
    """Returns the data that the page shows of a run; `files` keeps what earlier calls have read."""
    files = files or FileCache()
    working, answers = run.holder() is not None, run.path("report") / "answers.json"
    return {
        "name": run.root.name,
        "stages": [_stage(stage, run, working, files) for stage in STAGES if stage.folder not in _skipped(run)],
        "samples": files.made_from(answers, "samples", partial(_samples, answers)),
        "verdict": _verdict(run.root),
        "models": _models(run.root),
        "now": _now(run, working),
        "rounds": list_rounds(run),
        "answerable": _answerable(run.root),
        "decisions": [_decision(one) for one in reversed(read_trail(run.root)[-MAX_DECISIONS:])],
    }


def _verdict(root: Path) -> list[str]:
    """Returns the sentences of the present report's verdict; none while it is being made again."""
    if "report" not in present_folders(root):
        return []
    return str(RunFolder(root).require("report").metrics.get("verdict", "")).splitlines()


def _models(root: Path) -> list[dict[str, Any]]:
    """Returns the figures of the present report that all three models have, those first that RLHF changed most."""
    if "report" not in present_folders(root):
        return []
    metrics = RunFolder(root).require("report").metrics
    models = [metrics.get(name) or {} for name in MODELS]
    changes = (metrics.get("changes") or {}).get("sft", {})
    names = [name for name in models[2] if all(name in model for model in models)]
    names.sort(key=lambda name: -abs(changes.get(name, {}).get("change", 0.0)))
    return [{"name": name, **dict(zip(MODELS, (model[name] for model in models), strict=True))} for name in names]


def _now(run: RunFolder, working: bool) -> dict[str, Any] | None:
    """Returns the progress of the run, if a process works on it."""
    found = progress_of(run) if working else None
    if found is None:
        return None
    begun = {} if found.step is None else {"step": found.step, "steps": found.steps, "left": found.left}
    return {"stage": found.stage, "round": found.round} | begun | ({"figures": found.figures} if begun else {})


def _policy_curves(run: RunFolder, number: int) -> dict[str, list[tuple[int, float]]]:
    """Returns the reward and the divergence of a round's RLHF, by step."""
    kept = round_folder(run.root, number)
    root = kept if kept.exists() else run.root
    found = curves(read_metrics(RunFolder(root).path("policy")))
    return {name: found[name] for name in NOW if name in found}


def _answerable(root: Path) -> int | None:
    """Returns the number of the loop's round if it has been compared and waits for an approval; else None."""
    last = list(open_round(read_trail(root)).values())[-1:]
    if not last or (last[0].step, last[0].decision) != ("compare", "passed") or read_answer(root, last[0].round):
        return None
    return last[0].round


def _decision(one: Decision) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time))
    return {"round": one.round, "step": one.step, "decision": one.decision, "why": one.why, "when": when}


def _skipped(run: RunFolder) -> set[str]:
    # A run that fine-tunes an existing model has no corpus, and one whose rewards are computed ranks nothing.
    base, policy = run.manifest("base"), run.manifest("policy")
    corpus = {"corpus"} if base and "corpus" not in base.inputs else set()
    ranked = {"preferences", "reward"} if policy and "reward" not in policy.inputs else set()
    return corpus | {folder for folder in ranked if run.manifest(folder) is None}


def _stage(stage: Stage, run: RunFolder, working: bool, files: FileCache) -> dict[str, Any]:
    manifest, begun = run.manifest(stage.folder), run.partial_fingerprint(stage.folder) is not None
    state, why = _state(manifest, begun, working, run)
    folder = run.partial(stage.folder) if begun else run.path(stage.folder)
    described = {
        "name": stage.name,
        "folder": stage.folder,
        "purpose": stage.purpose,
        "after": stage.after,
        "state": state,
        "why": why,
        **files.made_from(folder / "metrics.jsonl", "curves", partial(_progress, folder)),
        "trace": files.made_from(folder / TRACE, "trace", partial(read_trace, folder)),
    }
    if manifest is None:
        return described
    return described | {
        "seconds": manifest.seconds,
        "version": manifest.version,
        "round": manifest.round,
        "fingerprint": manifest.fingerprint,
        "inputs": manifest.inputs,
        "weights": manifest.weights,
        "figures": dict(figures(manifest.metrics)),
    }


def _progress(folder: Path) -> dict[str, Any]:
    rows = read_metrics(folder)
    return {"curves": curves(rows), "written": written(rows), "rollouts": rollouts(rows)}


def _state(manifest: Manifest | None, begun: bool, working: bool, run: RunFolder) -> tuple[str, str]:
    # By the files of the run alone; `triptych doctor` says whether the recipe has changed since.
    if begun:
        return ("working", "in progress") if working else ("partial", "interrupted; the same command resumes it")
    if manifest is None:
        return "pending", "not run yet"
    for folder, made_from in manifest.made_from.items():
        found = run.manifest(folder)
        if found is None or found.fingerprint != made_from:
            return "stale", f"{folder} was made again since"
    return "done", ""


def figures(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every number of a manifest by its dotted name: `value`, and `low`, `high` and `n` if they are known."""
    for name, value in metrics.items():
        if isinstance(value, dict) and "value" not in value:
            yield from figures(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and is_number(value["value"]):
            yield prefix + name, {key: found for key, found in value.items() if is_number(found)}
        elif is_number(value):
            yield prefix + name, {"value": value}


def curves(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Returns every metric as (step, value) pairs, thinned to `MAX_POINTS` with both ends kept."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NO_METRICS and is_number(value):
                found.setdefault(name, []).append((row["step"], value))
    return {name: _thinned(points) for name, points in found.items() if len(points) > 1}


def written(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns a model's answers at its newest checkpoint, next to the data's and, if known, those before training."""
    newest = next((row for row in reversed(rows) if row.get("samples")), None)
    if newest is None:
        return None
    before = rows[0].get("samples_before") or [{}] * len(newest["samples"])
    samples = [
        {
            "question": now["given"],
            "answers": {
                **({"before": then["written"]} if then else {}),
                "now": now["written"],
                "data": now["wanted"],
            },
        }
        for then, now in zip(before, newest["samples"], strict=False)
    ]
    return {"step": newest["step"], "samples": samples}


def rollouts(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the newest answers that RLHF logged, in the format of `pipelines.evaluate.token_ratios`."""
    newest = next((row for row in reversed(rows) if row.get("rollouts")), None)
    return newest and {"step": newest["step"], "rollouts": newest["rollouts"]}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    count = min(MAX_POINTS, len(points))
    return [points[index * (len(points) - 1) // (count - 1)] for index in range(count)]


def _samples(path: Path) -> list[dict[str, Any]]:
    """Returns held-out questions with each model's answer, evenly spaced: neighboring questions have the same topic."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    count = min(MAX_SAMPLES, len(rows))
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    return [
        {
            "kind": row["kind"],
            "question": row["question"],
            "answers": {model: answer["text"] for model, answer in row["answers"].items()},
        }
        for row in chosen
    ]
