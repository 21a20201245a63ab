import contextlib
import hashlib
import os
import resource
import socket
from pathlib import Path

import pytest

from cluster.recipe.loading import load_recipe
from cluster.recipe.reference import reference
from cluster.run.folder import Manifest, RunFolder, file_fingerprint
from cluster.run.layout import STAGES
from cluster.run.server_client import write_server
from pipelines.cli import stage_runner
from pipelines.cli.doctor import serving_hindrances, serving_problems
from tests.helpers import free_port, triptych, triptych_here


def tree(folder: Path) -> str:
    """Hashes every name and byte below the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "no.yaml"], "cannot read the recipe no.yaml: No such file"),
        (["run", "recipe.yaml", "rlhf.stps=3"], "nearest known key is 'rlhf.steps'"),
        (["run", "recipe.yaml", "rlhf.steps=many"], "valid integer"),
        (["run", "recipe.yaml", "rlhf.steps=0"], "greater than 0"),
        (["run", "recipe.yaml", "corpus.sources.0.path=gone.txt"], "no file matches gone.txt: the folder /"),
        (
            ["run", "recipe.yaml", "corpus.previous_corpora=[gone]"],
            "no file matches gone/manifest.json: there is no folder /",
        ),
        (["run", "recipe.yaml", "corpus.decontaminate={files: [gone.json]}"], "no file matches gone.json"),
        (["run", "recipe.yaml", "evaluate.exam.function=gone.exam:exam"], "Python finds no module gone"),
        (
            ["run", "recipe.yaml", "rlhf.rewards=[{kind: function, function: 'gone:reward'}]"],
            "PYTHONPATH=. has it look",
        ),
        (["run", "recipe.yaml", "evaluate.exam.function=pipelines.demo.exam:exmas"], "the nearest name is "),
        (["run", "recipe.yaml", "sft.sources=[{path: text.txt}]"], "text.txt is in no format that rows are read from"),
        (["run", "recipe.yaml", "rlhf.kl_budget=2", "rlhf.stop.max_kl=3"], "old name of 'rlhf.stop.max_kl'"),
        (["run", "recipe.yaml", "model.start_from=./gone"], "there is no ./gone"),
        (["run", "recipe.yaml", "model.size=8B"], "too little memory"),
        (["run", "recipe.yaml", "cluster.memory_gb=1"], "1.0 GB are free"),
        (["run", "recipe.yaml", "cluster.address=ray://127.0.0.1:1"], "no Ray cluster answers at ray://127.0.0.1:1"),
        (["run", "recipe.yaml", "run=text.txt"], "is not a folder"),
        (["sft", "recipe.yaml"], "run `triptych pretrain RECIPE` first"),
        (["serve", "gone"], "cannot read the recipe gone"),
        (["serve", "."], "it has no recipe.yaml"),
        (["serve", "recipe.yaml"], "run `triptych sft RECIPE` first"),
        (["score", ".", "text.txt", "base"], "cannot write base: it is a folder"),
        (["score", ".", "gone.jsonl", "out.jsonl"], "no file matches gone.jsonl"),
        (["score", ".", "text.txt", "out.jsonl"], "text.txt is in no format that rows are read from"),
        (["score", ".", "text.txt", "gone/out.jsonl"], "cannot write gone/out.jsonl: there is no folder"),
        (["fleet", "run", "add", "1"], "no rlhf stage is running in run"),
        (["fleet", "run", "grow", "1"], "neither add nor remove"),
        (["fleet", "run", "add", "0"], "greater than or equal to 1"),
        (["submit", "run", "recipe.yaml"], "--address is missing"),
        (["submit", "run", "recipe.yaml", "--address", "http://127.0.0.1:1"], "no Ray job server answers"),
        (["submit", "run", "recipe.yaml", "--address", "head"], "such as http://127.0.0.1:8265"),
        (["submit", "cook", "recipe.yaml", "--address", "http://127.0.0.1:1"], "cannot submit 'cook'"),
        (["label", ""], "the word after label is empty: is a variable of the shell unset?"),
        (["feedback", "forget", "--run", ".", "--text="], "the value of --text is empty"),
        (["label", "long" * 200], "longlong…: File name too long: name another place"),
        (["cook"], "No such command 'cook': `triptych --help` lists the commands"),
        (["run"], "Missing argument 'RECIPE': see `triptych run --help`"),
        (["doctor", "run"], "unexpected extra argument(s) (run): see `triptych doctor --help`"),
        (["run", "recipe.yaml", "--prot", "1"], "No such option: --prot"),
    ],
)
def test_wrong_input_gives_one_line_and_changes_nothing(recipe_path: Path, words: list[str], message: str) -> None:
    folder = recipe_path.parent
    (folder / "base").mkdir()
    if words[:2] == ["serve", "."]:
        recipe_path.rename(folder / "other.yaml")
    before = tree(folder)
    done = triptych_here(*words, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("triptych: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""
    assert tree(folder) == before


def test_a_busy_port_is_reported_before_anything_starts(recipe_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        before = tree(recipe_path.parent)
        done = triptych("run", recipe_path, "--serve", "--port", str(port), cwd=recipe_path.parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"127.0.0.1 port {port}: Address already in use" in done.stderr
    assert tree(recipe_path.parent) == before


def test_a_locked_run_is_reported(recipe_path: Path) -> None:
    run = RunFolder(recipe_path.parent / "run")
    with run.lock():
        done = triptych("run", recipe_path, cwd=recipe_path.parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"in use by process {os.getpid()}" in done.stderr


def test_a_run_is_not_locked_while_it_is_served(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(recipe_path)
    holders: list[object] = []
    monkeypatch.setattr(stage_runner, "connect", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(stage_runner, "serve_run", lambda *given: holders.append(given[1].holder()))
    stage_runner.run_stages(recipe, (), ("127.0.0.1", 1))
    assert holders == [None]


def test_help_lists_stages_and_appears_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = triptych("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, which other processes do not make longer.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0
    assert all(stage.name in done.stdout for stage in STAGES)
    assert "Exit codes" in done.stdout
    assert seconds < 3, "no engine is imported to show the help"


def test_doctor_lists_the_stages_that_a_run_needs(recipe_path: Path) -> None:
    folder = recipe_path.parent / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_path.read_text())
    done = triptych_here("doctor", cwd=recipe_path.parent)
    assert "needs pretrain" in done.stdout
    assert "`triptych run runs/tiny/recipe.yaml run=runs/tiny` does what is left: corpus, pretrain, sft" in done.stdout
    assert done.stderr == ""


def test_doctor_reports_damaged_models_and_a_server_that_does_not_answer(recipe_path: Path) -> None:
    run = RunFolder(recipe_path.parent / "runs" / "tiny")
    for name in ("base", "sft"):
        out = run.begin(name, "mark")
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (out / file).write_text(file)
        weights = file_fingerprint(out / "model.safetensors")
        run.commit(name, Manifest(name, "mark", {}, {}, "1", 1.0, {}, weights))
    (run.root / "recipe.yaml").write_text(recipe_path.read_text())
    assert serving_problems(run) == []
    (run.path("base") / "tokenizer.json").unlink()
    (run.path("sft") / "model.safetensors").write_text("cut")
    write_server(run, f"http://127.0.0.1:{free_port()}", "token")
    base, sft, server = serving_problems(run)
    assert base == f"{run.path('base')} lacks tokenizer.json: remove it and run its stage again"
    assert sft.startswith(f"{run.path('sft') / 'model.safetensors'} is not what its stage wrote")
    assert server.startswith("no server answers at http://127.0.0.1:")
    done = triptych_here("doctor", cwd=recipe_path.parent)
    assert done.returncode != 0
    assert done.stdout.replace("\n", " ").count("serving: ") == 3


def test_doctor_reports_a_busy_port_and_short_memory(recipe_path: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        recipe = load_recipe(recipe_path, [f"serve.port={port}", "cluster.memory_gb=0.5"])
        memory, taken = serving_hindrances(recipe, run)
    assert memory.startswith("serving needs about ")
    assert memory.endswith(" GB of memory and 0.5 GB are free")
    assert taken.startswith(f"cannot listen on 127.0.0.1 port {port}")
    write_server(run, "http://127.0.0.1:1", "token")
    assert serving_hindrances(recipe, run) == []


def test_the_renamed_command_still_works_and_prints_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    done = triptych_here("labeller", "list", "--run", tmp_path, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "triptych: labeller is called annotator now; the old name works in this version only\n"


def test_the_reference_of_the_recipe_is_printed_whole_and_in_parts(tmp_path: Path) -> None:
    assert triptych_here("recipe", cwd=tmp_path).stdout == reference()
    assert "KL divergence from the fine-tuned model" in triptych_here("recipe", "rlhf.stop.max_kl", cwd=tmp_path).stdout
    wrong = triptych_here("recipe", "rlhf.stop.maxkl", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "no key rlhf.stop.maxkl" in wrong.stderr
    assert "triptych recipe" in triptych_here("run", "--help", cwd=tmp_path).stdout
