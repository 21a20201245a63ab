"""The shared training loop on real Ray Train workers."""

import json
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import ray
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipelines.train
from actors.model.causal_lm import build
from actors.model.microbatch import DataParallelRank, evaluate
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective
from actors.trainer import loop
from actors.trainer.data import Shard
from actors.trainer.held_out import check_ids
from actors.trainer.job import FAILURE, LoneWorker, TrainingJob, checkpoints_in
from actors.trainer.watchdog import Watchdog
from cluster.errors import EngineError, StageError, UserError
from cluster.recipe.model import Model
from cluster.recipe.training import Training
from cluster.run.folder import SCRATCH
from cluster.run.metrics import read_metrics
from cluster.runtime.plan import Allocation, Plan
from pipelines.train import best_checkpoint, fit, speed_metrics, wait_for_training
from tests.helpers import fastest, wait_until
from tests.tiny import tiny_tokenizer

# Two epochs in batches of seven: the last batch has one row, and a second worker none.
CONTEXT, ROWS, BATCH = 32, 25, 7
HELD_OUT_BYTES = 500
# A token that no row of `write_rows` has.
POISON = 260
HALF = Allocation(0.25, 0, 1)
PLAN = Plan(2, 0, 8, HALF, HALF, HALF, HALF, HALF)


def write_rows(path: Path, rows: int, seed: int) -> Shard:
    """Writes packed rows of two documents and uneven padding."""
    chance = np.random.default_rng(seed)
    input_ids, document_ids = [], []
    for _ in range(rows):
        used, cut = chance.integers(8, CONTEXT + 1), chance.integers(2, 7)
        input_ids.append([*chance.integers(5, 250, used), *[0] * (CONTEXT - used)])
        document_ids.append([*[0] * cut, *[1] * (used - cut), *[-1] * (CONTEXT - used)])
    columns = {"input_ids": input_ids, "document_ids": document_ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({k: pa.array(v, pa.list_(pa.int32())) for k, v in columns.items()}), path)
    return Shard(str(path), rows)


def with_token(shard: Shard, token: int) -> None:
    """Puts a token into the first row."""
    table = parquet.read_table(shard.path)
    rows = table["input_ids"].to_pylist()
    rows[0][1] = token
    parquet.write_table(table.set_column(0, "input_ids", pa.array(rows, pa.list_(pa.int32()))), shard.path)


class DiesOnce(LanguageObjective):
    """Kills its worker the first time that it has counted so many batches; a file remembers that it did."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.seen = marker, 0

    def count(self, batch: Any) -> int:
        self.seen += 1
        if self.seen == 8 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().count(batch)


class Stops(LanguageObjective):
    """Ends training after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def count(self, batch: Any) -> int:
        # Batches of one worker, or of one of two; those of held-out rows, which are counted too, have other sizes.
        if len(batch.input_ids) in (BATCH, BATCH // 2, BATCH - BATCH // 2):
            self.left -= 1
        if self.left < 0:
            raise UserError("stopped")
        return super().count(batch)


class Poisoned(LanguageObjective):
    """A language objective whose loss is not a number for a batch with the token POISON."""

    def loss(self, model: Any, batch: Any) -> tuple[Any, dict[str, float]]:
        summed, figures = super().loss(model, batch)
        return (summed * float("nan") if int(batch.input_ids.max()) == POISON else summed), figures


def make(folder: Path, objective: LanguageObjective) -> tuple[Any, Any, Any]:
    model = build(Model(vocabulary=300, hidden=64, layers=2, heads=2, context=CONTEXT), 0, end_of_turn=4, padding=0)
    return model, objective, AutoTokenizer.from_pretrained(folder)


def train(root: Path, name: str, objective: LanguageObjective | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Trains on Ray Train's workers."""
    return fit(training_job(root, name, objective, **settings), PLAN, title=name)


def train_here(
    root: Path, name: str, objective: LanguageObjective | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Trains in this process, which spares the start of the workers."""
    return run_here(training_job(root, name, objective, **settings))


def run_here(job: TrainingJob) -> list[dict[str, Any]]:
    """Trains in Ray Train's local mode."""
    (job.out / SCRATCH / FAILURE).unlink(missing_ok=True)
    threads = torch.get_num_threads()
    TorchTrainer(lambda: loop.train(job), scaling_config=ScalingConfig(num_workers=0)).fit()
    torch.set_num_threads(threads)
    return read_metrics(job.out)


def failure_of(job: TrainingJob) -> str:
    """Returns the recorded reason why training ended."""
    failure = json.loads((job.out / SCRATCH / FAILURE).read_text())
    return f"{failure['kind']}: {failure['message']}"


def training_job(
    root: Path, name: str, objective: LanguageObjective | None = None, token: int | None = None, **settings: Any
) -> TrainingJob:
    tiny_tokenizer(300).save_pretrained(root / "tokenizer")
    shards = [write_rows(root / f"train-{n}.parquet", rows, n) for n, rows in enumerate((ROWS - 8, 8))]
    if token is not None:
        with_token(shards[0], token)
    out = root / name
    out.mkdir(exist_ok=True)
    sizes = {"batch_rows": BATCH, "micro_batch_rows": BATCH, "checkpoint_every": 3}
    values = {"epochs": 2, "precision": "float32", **sizes}
    return TrainingJob(
        settings=Training(**{**values, **settings}),
        make=partial(make, root / "tokenizer", objective or LanguageObjective()),
        shards=shards,
        held_out=[write_rows(root / "held_out.parquet", 5, 99)],
        out=out,
        seed=1,
        threads=1,
        deadline=240,
        held_out_bytes=HELD_OUT_BYTES,
        samples=3,
        sample_tokens=4,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("trainer")
    return root, train_here(root, "undisturbed")


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_training_learns_and_exports_a_model(undisturbed):
    root, rows = undisturbed
    assert [row["step"] for row in rows] == list(range(8))
    assert losses(rows)[0] == pytest.approx(np.log(300), abs=0.2)
    assert {row["step"]: len(row["samples"]) for row in rows if "samples" in row} == {2: 3, 5: 3, 7: 3}
    assert AutoModelForCausalLM.from_pretrained(root / "undisturbed").config.hidden_size == 64


@pytest.mark.slow
def test_the_loss_does_not_depend_on_workers_micro_batches_and_ends(undisturbed):
    root, rows = undisturbed
    with pytest.raises(UserError, match="stopped"):
        train(root, "split", Stops(4), workers=2, micro_batch_rows=2, checkpoint_every=2)
    assert len(train_here(root, "split", Stops(2), micro_batch_rows=2, checkpoint_every=2)) == 6
    split = train(root, "split", workers=2, micro_batch_rows=2, checkpoint_every=2)
    assert [row["step"] for row in split if "lost_steps" in row] == [4, 6]
    assert losses(split) == pytest.approx(losses(rows), abs=2e-4)
    assert split[-1]["held_out_loss"] == pytest.approx(rows[-1]["held_out_loss"], abs=2e-4)
    assert [row["tokens"] for row in split] == [row["tokens"] for row in rows]
    assert split[-1]["samples"] == rows[-1]["samples"]
    # A finished job starts no worker when it is run again.
    again: list[list[dict[str, Any]]] = []
    work = partial(train, root, "split", workers=2, micro_batch_rows=2, checkpoint_every=2)
    assert fastest(lambda: again.append(work()), below=5) < 5
    assert again[-1] == split


@pytest.mark.slow
def test_a_killed_worker_costs_time_and_nothing_else(undisturbed):
    root, rows = undisturbed
    resumed = train(root, "killed", DiesOnce(root / "died"))
    assert (root / "died").exists()
    assert [row["step"] for row in resumed] == list(range(8))
    assert losses(resumed) == pytest.approx(losses(rows), abs=1e-6)
    assert [step for step, _ in checkpoints_in(root / "killed")] == [6, 8]
    (resume,) = speed_metrics(resumed)["resumes"]
    assert resume["lost_steps"] == 2
    assert 0 < resume["recovery_seconds"] < 120


class Waits(Watchdog):
    """A watchdog that records the names of the waits."""

    found: ClassVar[list[str]] = []

    def begin(self, what: str) -> None:
        self.found.append(what)
        super().begin(what)


@pytest.mark.slow
def test_measuring_exporting_and_saving_have_deadlines_of_their_own(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "Watchdog", Waits)
    train_here(tmp_path, "waits", checkpoint_every=8)
    last = Waits.found.index("step 7 of training")
    assert Waits.found[0] == "a model to train"
    assert Waits.found[1] == "the held-out rows and the loss on them before training"
    assert Waits.found[last + 1 :] == [
        "the held-out loss after step 7",
        "the export of the model after step 7",
        "the checkpoint after step 7",
    ]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(tmp_path: Path, ray_session: None):
    # Random tokens: memorizing the trained rows does not help on the held-out ones.
    rows = train_here(tmp_path, "best", keep="best", epochs=12, learning_rate=0.01)
    best = best_checkpoint(rows, Training(keep="best"))
    assert best["step"] < rows[-1]["step"]
    assert best["held_out_loss"] < rows[-1]["held_out_loss"] - 0.1
    objective = LanguageObjective()
    model = WithLoss(AutoModelForCausalLM.from_pretrained(tmp_path / "best"), objective)
    worker = DataParallelRank(0, 1, 5, "float32", torch.device("cpu"))
    found = evaluate(model, objective, iter([parquet.read_table(tmp_path / "held_out.parquet")]), worker)
    assert found["loss"] == pytest.approx(best["held_out_loss"], abs=1e-5)


@pytest.mark.slow
def test_a_held_out_loss_that_is_never_finite_is_an_error(tmp_path: Path, ray_session: None):
    job = training_job(tmp_path, "never", Poisoned(), keep="best")
    with_token(job.held_out[0], token=POISON)
    run_here(job)
    assert failure_of(job).startswith("StageError: the held-out loss was never finite")


@ray.remote(num_cpus=0)
class Frozen:
    """A worker whose process stands still."""

    def process(self) -> int:
        return os.getpid()

    def train(self, _: TrainingJob) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_frozen_worker_is_killed(tmp_path: Path, ray_session: None):
    worker = Frozen.remote()
    process = ray.get(worker.process.remote(), timeout=60)
    with pytest.raises(EngineError, match=r"^the training worker finished no step in 3 s$"):
        wait_for_training(worker, replace(training_job(tmp_path, "still"), deadline=0.5))
    wait_until(lambda: not psutil.pid_exists(process), 60, "the worker's process to end")


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, ray_session: None):
    rows = train_here(tmp_path, "poisoned", Poisoned(), token=POISON, skip_nonfinite_steps=1)
    skipped = [row for row in rows if row.get("skipped")]
    # One row of 25 is poisoned and seen in each of two epochs.
    assert len(skipped) == 2
    assert all("loss" not in row and row["tokens"] == 0 for row in skipped)
    assert [row["step"] for row in rows] == list(range(8))
    assert all(np.isfinite(row["loss"]) for row in rows if row not in skipped)
    assert speed_metrics(rows)["skipped_steps"] == 2
    assert np.isfinite(rows[-1]["held_out_loss"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "poisoned")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path, ray_session: None):
    job = training_job(tmp_path, "poisoned", Poisoned(), token=POISON)
    run_here(job)
    assert re.match(r"StageError: the loss is nan .* at step \d: lower the learning rate", failure_of(job))
    assert not (job.out / "model.safetensors").exists()


def refused(tries: Path) -> tuple[Any, Any, Any]:
    with tries.open("a") as file:
        file.write("once\n")
    raise UserError("no model of this kind")


@pytest.mark.slow
def test_a_model_that_is_refused_is_made_once(tmp_path: Path, ray_session: None):
    job = replace(training_job(tmp_path, "refused"), make=partial(refused, tmp_path / "tries"))
    with pytest.raises(UserError, match=r"^no model of this kind$"):
        fit(job, PLAN, title="refused")
    assert (tmp_path / "tries").read_text() == "once\n"


def waits_for_ever(tries: Path) -> tuple[Any, Any, Any]:
    with tries.open("a") as file:
        file.write("once\n")
    threading.Event().wait()
    raise AssertionError


class ShortDeadline(LoneWorker):
    """A worker with a shorter deadline than its watcher's: its imports alone take long on a busy machine."""

    def train(self, job: TrainingJob) -> None:
        super().train(replace(job, deadline=3))


@pytest.mark.slow
def test_a_worker_that_waits_too_long_ends_with_what_it_waited_for(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipelines.train, "LoneWorker", ShortDeadline)
    late = replace(training_job(tmp_path, "late"), make=partial(waits_for_ever, tmp_path / "tries"))
    with pytest.raises(StageError, match=r"^waited 3 s for a model to train \(cluster.deadline_minutes\); "):
        fit(late, PLAN, title="late")
    assert (tmp_path / "tries").read_text() == "once\n"


@pytest.mark.parametrize("missing", [{"shards": []}, {"held_out": []}])
def test_missing_rows_are_an_error_before_anything_starts(tmp_path: Path, missing: dict[str, list]):
    job = replace(training_job(tmp_path, "empty"), **missing)
    with pytest.raises(UserError, match=r"empty: there is not one row to (train on|hold out): add sources"):
        fit(job, PLAN, title="empty")


def test_ids_without_an_embedding_are_named():
    rows = pa.table({"input_ids": [[1, 2], [299, 300]]})
    check_ids(rows, 301, "a row")
    with pytest.raises(UserError, match="a row of step 3 holds the token id 300, and the model has 300 embeddings"):
        check_ids(rows, 300, "a row of step 3")


@pytest.mark.slow
def test_throughput_and_bits_per_byte_are_recorded(undisturbed):
    _, rows = undisturbed
    assert all(0 < row["mfu"] < 1 and 0 <= row["data_wait_share"] <= 1 for row in rows)
    # PyTorch alone takes more than 0.1 GB.
    assert all(row["peak_memory_gb"] > 0.1 for row in rows)
    assert rows[-1]["held_out_bits_per_byte"] == pytest.approx(
        rows[-1]["held_out_loss"] * rows[-1]["held_out_tokens"] / np.log(2) / HELD_OUT_BYTES
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_layers_and_losses_give_the_same_curve(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    root, plain = undisturbed
    compiled = train_here(root, "compiled", compile_layers=True)
    assert [row["loss"] for row in compiled] == pytest.approx([row["loss"] for row in plain], abs=1e-4)
    assert compiled[-1]["held_out_loss"] == pytest.approx(plain[-1]["held_out_loss"], abs=1e-4)
