"""Adapters: which folders and names are accepted."""

import json
import re
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.serve import Adapter, Serve
from serve.replica.lora import CONFIG, WEIGHTS, adapter_rank, adapters_of, check_adapters


def section(folder: Path) -> Serve:
    return Serve(adapters={"terse": Adapter(path=str(folder), model="sft")})


def test_an_adapter_lies_beside_its_model_and_no_other(tmp_path: Path) -> None:
    assert adapters_of("sft", section(tmp_path)) == {"terse": tmp_path}
    assert adapters_of("base", section(tmp_path)) == {}


def test_missing_files_of_an_adapter_are_named(tmp_path: Path) -> None:
    wanted = section(tmp_path)
    with pytest.raises(UserError, match=r"terse adapts sft, which the run has not finished"):
        check_adapters(wanted, {})
    for file in (CONFIG, WEIGHTS):
        with pytest.raises(UserError, match=rf"serve.adapters.terse: {re.escape(str(tmp_path))} holds no {file}"):
            check_adapters(wanted, adapters_of("sft", wanted))
        (tmp_path / file).write_text("{}")
    check_adapters(wanted, adapters_of("sft", wanted))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"r": null}'])
def test_a_configuration_without_a_rank_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(UserError, match=CONFIG):
        adapter_rank(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"r": 4}))
    assert adapter_rank(tmp_path) == 4


def test_names_are_given_once() -> None:
    adapter = Adapter(path="terse")
    with pytest.raises(ValueError, match="adapters: sft is the name of a model"):
        Serve(adapters={"sft": adapter})
    with pytest.raises(ValueError, match="aliases: terse is the name of a model"):
        Serve.model_validate({"adapters": {"terse": adapter}, "aliases": {"terse": "sft"}})
