"""Tests the server with tools of other projects: EleutherAI's evaluation harness, and schemathesis on the published
OpenAPI.

The harness asks TruthfulQA's questions with one right answer (mc1) through `/v1/completions`. The same answers are
scored by transformers itself: the accuracy must be the same, and every log-probability within TOLERANCE. Schemathesis
makes up requests, valid and not; none may be answered with 500 or above. The model has random weights and the demo's
shape, or is one in a Hugging Face directory.

python -m infra.bench.servers.compatibility [--questions FILE] [--limit 100] [--model DIRECTORY] [--cases 2000]
    FILE is TruthfulQA's JSON: a list of {"question", "mc1_targets": {"choices", "labels"}}; without it, only
    schemathesis runs
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoTokenizer

from actors.model.causal_lm import load
from actors.model.forward import next_token_losses
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from infra.bench.peers.install import on_their_own
from infra.bench.servers.start import MODEL, RECIPE, free_port, own, write_run

HARNESS = ("lm_eval[api]==0.4.13", f"transformers=={transformers.__version__}")
FUZZER = ("schemathesis==4.32.5",)
# The questions come after six answered ones.
CONTEXT = 1024
TASK = "truthfulqa_mc1_file"
TOLERANCE = 1e-2
SECONDS = 3600


def harness_samples(run: RunFolder, url: str, questions: Path, limit: int, folder: Path) -> list[dict[str, Any]]:
    """Returns what the harness measured for every question.

    Raises:
        SystemExit: it failed.
    """
    python = on_their_own(HARNESS)
    found = subprocess.run(
        [str(python), "-c", "import lm_eval.tasks; print(lm_eval.tasks.__path__[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    task = {
        "include": str(Path(found.stdout.strip()) / "truthfulqa" / "truthfulqa_mc1.yaml"),
        "task": TASK,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(questions.resolve())}},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    settings = {
        "model": MODEL,
        "base_url": f"{url}/v1/completions",
        "tokenizer": run.path(MODEL),
        "tokenizer_backend": "huggingface",
        "max_length": CONTEXT,
        "num_concurrent": 8,
    }
    options = {
        "--model": "local-completions",
        "--model_args": ",".join(f"{name}={value}" for name, value in settings.items()),
        "--tasks": TASK,
        "--include_path": folder,
        "--limit": limit,
        "--output_path": folder / "found",
    }
    words = [str(word) for option in options.items() for word in option]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    command = [str(python), "-m", "lm_eval", *words, "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=SECONDS)
    if done.returncode:
        sys.exit(f"the harness failed:\n{done.stderr[-3000:]}")
    (file,) = (folder / "found").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


@torch.no_grad()
def scored(run: RunFolder, asked: list[tuple[str, str]]) -> list[float]:
    """Computes the log-probability of each continuation of a context by transformers in float32, in nats."""
    model, tokenizer = load(run.path(MODEL)).eval(), AutoTokenizer.from_pretrained(run.path(MODEL))
    found = []
    for context, continuation in asked:
        ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
        begins = len(tokenizer(context, add_special_tokens=False).input_ids)
        row = torch.tensor([ids])
        found.append(-float(next_token_losses(model, row, torch.arange(len(ids))[None] >= begins).sum()))
    return found


def harness(run: RunFolder, url: str, questions: Path, limit: int, folder: Path) -> bool:
    """Prints both accuracies and whether they are the same."""
    samples = harness_samples(run, url, questions, limit, folder)
    asked = [
        (index, (request["arg_0"], request["arg_1"]), float(response[0][0]))
        for index, sample in enumerate(samples)
        for request, response in zip(sample["arguments"].values(), sample["resps"], strict=True)
    ]
    ours = scored(run, [texts for _, texts, _ in asked])
    gap = max(abs(direct - served) for direct, (_, _, served) in zip(ours, asked, strict=True))
    rows = groupby(zip(asked, ours, strict=True), key=lambda pair: pair[0][0])
    # The right answer is the first of the choices in mc1, by the harness's own task.
    right = [[direct for _, direct in own] for _, own in rows]
    direct = sum(values.index(max(values)) == 0 for values in right) / len(samples)
    served = sum(sample["acc"] for sample in samples) / len(samples)
    print(f"TruthfulQA mc1, {len(samples)} questions, {len(asked)} answers: {served:.4f} through the server, ", end="")
    print(f"{direct:.4f} by transformers; log-probabilities differ by at most {gap:.1e} nats", flush=True)
    return served == direct and gap < TOLERANCE


def fuzz(url: str, cases: int, folder: Path) -> bool:
    """Prints what schemathesis found, and whether that is nothing."""
    program = on_their_own(FUZZER).with_name("schemathesis")
    options = {
        "--checks": "not_a_server_error",
        "--phases": "examples,fuzzing",
        # Two routes take a body; each gets half of the cases.
        "--max-examples": cases // 2,
        "--workers": 4,
        "--seed": 1,
        "--request-timeout": 120,
        "--generation-database": "none",
        "--report-ndjson-path": folder / "cases.ndjson",
    }
    words = [str(word) for option in options.items() for word in option]
    command = [str(program), "run", f"{url}/openapi.json", *words, "--continue-on-failure", "--no-color"]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=SECONDS
    )
    report = done.stdout[done.stdout.rfind("= SUMMARY =") :] if not done.returncode else done.stdout[-6000:]
    print(report)
    made = sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) generated", done.stdout))
    print(f"schemathesis: {made:,} cases, of {cases:,} wanted; {'none' if not done.returncode else 'some'} failed")
    return not done.returncode and made >= cases


def main() -> None:
    """Prints what the tools found; ends with 1 if that is anything wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=int, default=100, help="questions that are asked")
    parser.add_argument("--model", type=Path, metavar="DIRECTORY")
    parser.add_argument("--cases", type=int, default=2000)
    given = parser.parse_args()
    # So that the server ends with the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    recipe = load_recipe(RECIPE, [f"model.context={CONTEXT}"])
    with tempfile.TemporaryDirectory(prefix="triptych-compatibility-") as name:
        folder = Path(name)
        run, port = write_run(folder / "run", recipe, model=given.model), free_port()
        url = f"http://127.0.0.1:{port}"
        with own(run, port, folder / "own.log"):
            whole = [harness(run, url, given.questions, given.limit, folder)] if given.questions else []
            if given.cases:
                whole.append(fuzz(url, given.cases, folder))
    sys.exit(not all(whole))


if __name__ == "__main__":
    main()
