"""Every kind of causal language model that transformers has, tiny, through training and RLHF: infra/docs/models.md.

Each kind is built with random weights, loaded as `model.start_from`, trained for one step on packed rows, in full and
by adapters, and exported, and the export is proved. Then an engine of vLLM starts from the untrained model, receives
the trained weights as RLHF sends them, and scores tokens as transformers does. What is refused says why. Each kind has
a process of its own; those that are done stay in the folder of results, and the next call goes on with the others.

python -m infra.bench.models [KIND …] [--results runs/models] [--minutes 300] > infra/docs/models.md
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.exceptions import GetTimeoutError, RayError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils import logging

from actors.model import lora
from actors.model.causal_lm import load, load_for_training, save
from actors.model.microbatch import DataParallelRank, accumulate
from actors.model.optim import make_optimizers
from actors.model.sharding.fsdp import WithLoss
from actors.model.start_checks import require_no_experts
from actors.objectives.lm import LanguageObjective
from actors.rollout.actor import EngineSettings, RolloutActor, engine_env_vars
from actors.rollout.weights import mismatch, publish
from actors.trainer.proof import note_export, prove_export
from cluster.errors import StageError, UserError, first_line
from cluster.recipe.base import Lora
from cluster.recipe.model import Cluster, Model
from cluster.runtime.plan import Allocation
from cluster.runtime.session import connect
from infra.bench.corpora.model_page import page
from infra.bench.corpora.tiny_kinds import tiny_model
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer

CONTEXT, SECONDS = 64, 120
WORKER = DataParallelRank(0, 1, 2, "float32", torch.device("cpu"))
# The most that the log-probabilities of a token by engine and transformers may differ, both in float32.
TOLERANCE = 1e-3
Found = dict[str, str]


def rows() -> pa.Table:
    """Makes two packed rows of two documents each, with padding."""
    ids = np.random.default_rng(0).integers(5, 300, (2, CONTEXT)).tolist()
    return pa.table({"input_ids": ids, "document_ids": [[0] * 20 + [1] * 40 + [-1] * 4] * 2})


def make_tokenizer(folder: Path) -> Any:
    """Makes the tokenizer of all kinds, or loads it."""
    from actors.model.tokenizer import load_tokenizer

    if not folder.exists():
        words = (f"word {number} and the {number % 17}th other" for number in range(400))
        save_tokenizer(train_tokenizer(words, 400), folder, CONTEXT)
    return load_tokenizer(folder)


def prove_training(start: Path, out: Path, tokenizer: Any, adapters: bool) -> str:
    """Trains a model for one step and proves its export."""
    objective = LanguageObjective()
    unwrapped = load_for_training(Model(start_from=str(start), context=CONTEXT), tokenizer, seed=1)
    if adapters:
        lora.add(unwrapped, Lora(rank=4), seed=1)
    model = WithLoss(unwrapped, objective).train()
    accumulate(model, objective, rows(), objective.count(objective.collate(rows())), WORKER)
    for optimizer in make_optimizers(model, "adamw", 1e-2, 0.1):
        optimizer.step()
    save(unwrapped, tokenizer, out)
    note_export(model, rows(), out, WORKER)
    prove_export(objective, rows(), out, WORKER)
    return "proved"


def try_kind(kind: type, folder: Path) -> None:
    """Writes to `folder` how the training of a kind ended; a traceback in its log is a fault."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = make_tokenizer(folder.parent / "tokenizer")
    model = tiny_model(kind)
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    (folder / "built").touch()
    name = kind.model_type  # type: ignore[attr-defined]
    for how in ("full", "adapters"):
        try:
            found = prove_training(folder / "start", folder / how, tokenizer, how == "adapters")
        except (UserError, StageError) as error:
            found = refusal(error, str(folder / "start"), name)
        (folder / f"{how}.txt").write_text(found, encoding="utf-8")


def refusal(error: Exception, folder: str, name: str) -> str:
    """Returns why a kind is refused, without its name and folder, so that kinds that are alike say the same."""
    # The advice of transformers does not help here.
    said = first_line(error).partition(". Please")[0].replace(folder, name)
    said = said.partition(": start from")[0].removeprefix(f"{name}: ").replace(f"a model of the kind {name} ", "")
    said = re.sub(r"cannot load a model from \S+: \w+ does not", "transformers' class does not", said)
    return f"{'refused' if isinstance(error, UserError) else 'FAILS'}: {said}"


def rlhf_refusal(folder: Path) -> str:
    """Returns why RLHF refuses a kind before anything starts; empty if it does not."""
    try:
        require_no_experts(AutoConfig.from_pretrained(folder / "full"), folder.name)
    except UserError as error:
        return refusal(error, str(folder), folder.name)
    return ""


def try_rlhf(folder: Path) -> str:
    """Starts an engine from the untrained model, gives it the trained weights, and scores tokens with them.

    Raises:
        GetTimeoutError: this took longer than `SECONDS`, which a busy machine needs and says nothing of the kind.
    """
    import ray

    trained = load(folder / "full").eval()
    allocation = Allocation(cpus=1, gpus=0, threads=1)
    settings = EngineSettings(folder / "start", CONTEXT, 1, allocation)
    kind: Any = ray.remote(RolloutActor).options(runtime_env={"env_vars": engine_env_vars(allocation)}, num_cpus=1)
    actor = kind.remote(settings, 0)
    try:
        ray.get(actor.ready.remote(), timeout=SECONDS)
        weights = publish(1, dict(trained.named_parameters()), torch.float32)
        found = ray.get(actor.pull_weights.remote(1, [weights.ref], torch.float32), timeout=SECONDS)
        if different := mismatch(weights.digests, found):
            return f"stops: after a sync the engine has other weights in {different}"
        ids = rows()["input_ids"].to_pylist()
        scored = torch.tensor(ray.get(actor.score.remote(ids, [1] * len(ids)), timeout=SECONDS))
        with torch.no_grad():
            logits = trained(input_ids=torch.tensor(ids)).logits[:, :-1].float().log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(ids)[:, 1:, None]).squeeze(-1)
        off = float((scored - expected).abs().max())
        return "synced" if off <= TOLERANCE else f"stops: log-probabilities differ by {off:.2g}"
    except GetTimeoutError:
        raise
    except RayError as error:
        return f"no engine: {reason(str(error), folder.name)}"
    finally:
        ray.kill(actor)


def reason(text: str, name: str) -> str:
    """Returns the last error that a traceback names."""
    ends = [
        line for line in text.splitlines() if re.match(r"\s*(ray\.\S+)?\w[\w.]*(Error|Exception|Interrupt)\b", line)
    ]
    last = (ends or [text.strip().splitlines()[0] if text.strip() else "it died"])[-1].strip()
    return re.sub(r"/\S+", "…", last).replace(name, "it")[:140]


def in_process(function: Callable[..., None], *arguments: Any, log: Path) -> bool:
    """Calls a function in a process of its own, which may die; returns whether it ended in time."""

    def call() -> None:
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join(SECONDS)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    return not late


def train_kind(kind: type, results: Path) -> Found:
    """Returns how the training of a kind ended, in full and by adapters."""
    name = kind.model_type  # type: ignore[attr-defined]
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    in_time = in_process(try_kind, kind, folder, log=folder / "log")
    why = reason((folder / "log").read_text(errors="replace"), name) if in_time else f"longer than {SECONDS} s"
    missing = f"FAILS: {why}" if (folder / "built").exists() else f"not built: {why}"
    files = {how: folder / f"{how}.txt" for how in ("full", "adapters")}
    return {how: file.read_text(encoding="utf-8") if file.exists() else missing for how, file in files.items()}


def main() -> None:
    """Goes on with the kinds that the command line names, or all, and prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--results", type=Path, default=Path("runs/models"))
    parser.add_argument("--minutes", type=float, default=300.0, help="after which no further kind is begun")
    given = parser.parse_args()
    logging.disable_progress_bar()
    begun, results = time.monotonic(), given.results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    make_tokenizer(results / "tokenizer")
    kinds = {kind.model_type: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if not kind.sub_configs}  # type: ignore[attr-defined]
    found: dict[str, Found] = {}
    for name in sorted(given.kinds or kinds):
        done = results / f"{name}.json"
        if not done.exists() and time.monotonic() - begun < 60 * given.minutes:
            done.write_text(json.dumps(train_kind(kinds[name], results)))
            print(name, done.read_text(), file=sys.stderr, flush=True)
        if done.exists():
            found[name] = json.loads(done.read_text())
    for name, one in found.items():
        if one["full"] == "proved" and "rlhf" not in one and (refused := rlhf_refusal(results / name)):
            one["rlhf"] = refused
            (results / f"{name}.json").write_text(json.dumps(one))
    waiting = [name for name, one in found.items() if one["full"] == "proved" and "rlhf" not in one]
    if waiting and time.monotonic() - begun < 60 * given.minutes:
        with connect(Cluster(cpus=2)):
            for name in waiting:
                if time.monotonic() - begun > 60 * given.minutes:
                    break
                with suppress(GetTimeoutError):
                    found[name]["rlhf"] = try_rlhf(results / name)
                    (results / f"{name}.json").write_text(json.dumps(found[name]))
                print(name, found[name].get("rlhf"), file=sys.stderr, flush=True)
    left = len(given.kinds or kinds) - len(found)
    left += sum(one["full"] == "proved" and "rlhf" not in one for one in found.values())
    if left:
        print(f"{left} steps are left: the same command goes on", file=sys.stderr)
    print(page(found), end="")


if __name__ == "__main__":
    main()
