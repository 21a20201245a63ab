from pathlib import Path

import pytest

from cluster.recipe import load_recipe


def test_a_submitted_recipe_means_the_same_elsewhere(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cluster.jobs import resolved

    monkeypatch.chdir(tmp_path)
    recipe = resolved(load_recipe(recipe_path, ["run=''", "corpus.sources.0.path=text.txt", "rlhf.steps=7"]))
    assert recipe.run == str(tmp_path / "runs" / "tiny")
    assert recipe.corpus.sources[0].path == str(tmp_path / "text.txt")
    assert recipe.rlhf.steps == 7
