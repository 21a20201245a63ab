"""The files that the runner of stages keeps in the run folder."""

import stat
from pathlib import Path

import pytest

from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from pipelines.cli.stage_runner import keep_recipe

RECIPE = """\
name: kept
corpus: {{sources: [{{path: '{path}'}}]}}
sft: {{sources: [{{path: chats.jsonl}}]}}
collect: {{sources: [{{path: chats.jsonl}}]}}
"""


@pytest.mark.parametrize(
    ("path", "private"),
    [("s3://key:secret@bucket/a.jsonl", True), ("s3://bucket/a.jsonl", False), ("text.txt", False)],
)
def test_a_recipe_with_credentials_is_readable_for_its_owner_alone(tmp_path: Path, path: str, private: bool) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(path=path), encoding="utf-8")
    run = RunFolder(tmp_path / "run")
    for _ in range(2):
        keep_recipe(load_recipe(file), run)
        others = stat.S_IMODE(run.recipe_path.stat().st_mode) & 0o077
        assert (others == 0) is private
    assert load_recipe(run.recipe_path).corpus.sources[0].path == path
