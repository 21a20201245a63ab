"""The page of models has the results of its benchmark, which is run here for a few kinds."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from actors.model.causal_lm import load
from actors.model.start_checks import require_no_experts
from cluster.errors import UserError
from infra.bench.corpora.model_page import NOT_MEASURED, STEPS, _cells, page, read_page
from infra.bench.models import make_tokenizer, reason, refusal, try_kind
from tests.helpers import ROOT

PAGE = ROOT / "infra" / "docs" / "models.md"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "lfm2", "gemma2"])
def test_the_page_says_what_the_benchmark_finds(name: str, tmp_path: Path):
    folder = tmp_path / name
    folder.mkdir()
    make_tokenizer(tmp_path / "tokenizer")
    try_kind(type(AutoConfig.for_model(name)), folder)
    found = {how: (folder / f"{how}.txt").read_text() for how in ("full", "adapters")}
    written = read_page(PAGE.read_text(encoding="utf-8"))[name]
    assert _cells((found["full"], found["adapters"], written[2]))[:2] == list(written[:2])
    if found["full"] == "proved":
        refused = None
        try:
            require_no_experts(load(folder / "full").config, name)
        except UserError as error:
            refused = refusal(error, str(folder), name)
        assert written[2] == refused if refused else written[2] in ("synced", NOT_MEASURED)


def test_the_page_is_the_benchmarks_own():
    text = PAGE.read_text(encoding="utf-8")
    cells = read_page(text)
    assert len(cells) > 120
    assert list(cells.values()).count(("proved", "proved", "synced")) >= 4
    # Written again from its own cells it is the same: nobody changed it by hand.
    assert page({kind: dict(zip(STEPS, found, strict=True)) for kind, found in cells.items()}) == text
    assert not [kind for kind, found in cells.items() if any(cell.startswith("FAILS") for cell in found)]


def test_kinds_that_behave_alike_share_a_row():
    refused = {"full": "refused: a|b", "adapters": "refused: a|b"}
    proved = {"full": "proved", "adapters": "proved", "rlhf": "synced"}
    text = page({"one": proved, "two": refused, "three": proved})
    assert text.splitlines()[-2:] == [
        "| one, three | proved | proved | synced |",
        "| two | refused: a\\|b | the same | the same |",
    ]
    assert read_page(text) == {
        "one": ("proved", "proved", "synced"),
        "three": ("proved", "proved", "synced"),
        "two": ("refused: a\\|b", "the same", "the same"),
    }


def test_the_reason_is_the_last_error_of_a_traceback_without_paths():
    text = "Traceback:\n  File x\nKeyError: 'a'\n\nray.exceptions.RayTaskError(ValueError): no /tmp/llama"
    assert reason(text, "llama") == "ray.exceptions.RayTaskError(ValueError): no …"
    assert reason("", "llama") == "it died"
