from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.base import named_functions
from cluster.recipe.collect import ChatSource, Collect
from cluster.recipe.corpus import Corpus
from cluster.recipe.evaluate import Evaluate
from cluster.recipe.functions import check_function
from cluster.recipe.functions.signature import ENVIRONMENT, REWARD, ROWS, CallForm
from cluster.recipe.rlhf.section import Rlhf
from cluster.recipe.serve import Story

SOURCES = {
    "mine.py": "import json\nfrom os import path as where\n\n\ndef short(question, answer):\n    return 1.0\n",
    "broken.py": "def short(:\n",
    "needy.py": "import no_such_package.part\n\n\ndef short(question, answer):\n    return 1.0\n",
    "inner.py": "def short(question, answer):\n    from no_such_package import part\n    return part\n",
    "lazy.py": "try:\n    import no_such_package\nexcept ImportError:\n    pass\n\n\ndef short(): ...\n",
    "moved.py": "import sys\nsys.path.append('x')\nimport no_such_package\n\n\ndef short(): ...\n",
    "star.py": "from mine import *\n",
    "branch.py": "if True:\n    def short(): ...\nelse:\n    short = None\n",
    "made.py": "def __getattr__(name): ...\n",
    "forms.py": "import json\nLIMIT = 5\n\ndef one(question): ...\ndef three(question, answer, more): ...\n"
    "def rows(seed, language='en'): ...\ndef defaults(question, answer, scale=1.0): ...\ndef anything(*a, **k): ...\n"
    "class Still: ...\nclass Talk:\n    def reset(self, question): ...\n    async def step(self, trajectory): ...\n"
    "class Own(Talk): ...\nshort = lambda text: 1.0\nmade = json.loads\n@json.wrap\ndef wrapped(text): ...\n",
    "package/__init__.py": "raise RuntimeError('it was imported')\n",
    "package/part.py": "from . import other\n\nshort = other.short\n",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone:short", "gone:short: Python finds no module gone; PYTHONPATH=. has it look in this folder"),
        ("package.gone:short", "Python finds no module package.gone"),
        ("mine.py:short", "write it without its suffix, mine:short"),
        ("mine:shrot", "mine.py has no shrot; the nearest name is short"),
        ("package.part:long", "part.py has no long"),
        ("broken:short", "broken.py line 1 is not valid Python: "),
        ("needy:short", "needy.py line 1 imports no_such_package, which Python does not find; install it"),
        ("inner:short", "inner.py line 2 imports no_such_package"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_by_its_source(modules: None, name: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        check_function(name)
    assert message in str(found.value)


@pytest.mark.parametrize(
    "name",
    [
        *("mine:short", "mine:where", "package.part:short", "lazy:short", "moved:short", "star:short", "branch:short"),
        *("made:anything", "actors.checks:same_text", "math:sqrt", "pipelines.demo.rewards:longer"),
    ],
)
def test_functions_that_the_source_does_not_rule_out_pass(modules: None, name: str) -> None:
    check_function(name)


@pytest.mark.parametrize(
    ("name", "form", "arguments", "message"),
    [
        (
            "one",
            REWARD,
            {},
            "line 4: one cannot be called with (question, answer): too many positional arguments; its ",
        ),
        ("one", REWARD, {}, "; its signature should be (question, answer) -> number"),
        ("three", REWARD, {}, "missing a required argument: 'more'"),
        ("short", REWARD, {}, "line 14: short cannot be called with (question, answer)"),
        (
            "LIMIT",
            REWARD,
            {},
            "line 2: LIMIT is a value, not a function; it should be a function (question, answer) ->",
        ),
        ("json", REWARD, {}, "line 1: json is a module, not a function"),
        ("Talk", REWARD, {}, "line 10: Talk is a class, not a function"),
        ("Still", ENVIRONMENT, {}, "Still is a class without reset and step"),
        ("one", ENVIRONMENT, {}, "its signature should be (question, answers) -> message"),
        ("one", ROWS, {}, "one cannot be called with (seed=): missing a required argument: 'question'"),
        (
            "rows",
            ROWS,
            {"laguage": "de"},
            "got an unexpected keyword argument 'laguage'; its signature should be (seed, ",
        ),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused(
    modules: None, name: str, form: CallForm, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as found:
        check_function(f"forms:{name}", form, arguments)
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("defaults", REWARD), ("anything", REWARD), ("Own", REWARD), ("made", REWARD), ("wrapped", REWARD)),
        *(("Talk", ENVIRONMENT), ("Own", ENVIRONMENT), ("rows", ROWS), ("Still", ROWS), ("anything", ROWS)),
    ],
)
def test_functions_that_the_stage_can_call_or_that_the_source_does_not_decide_pass(
    modules: None, name: str, form: CallForm
) -> None:
    check_function(f"forms:{name}", form)


def test_every_function_of_a_recipe_has_the_form_of_its_calls() -> None:
    own = {"function": "m:f", "arguments": {"noise": 1}}
    source = {"kind": "function", **own}
    reward = {"kind": "function", "function": "m:f"}
    sections = [
        Corpus.model_validate({"sources": [source]}),
        ChatSource.model_validate(source),
        Collect.model_validate({"sources": [source], "annotator": own}),
        Evaluate.model_validate({"exam": own}),
        Rlhf.model_validate({"rewards": [reward], "environment": {"function": "m:f"}}),
        Story.model_validate({"sentences": ["a"], "questions": ["b"], "gameable": "m:f"}),
    ]
    found = named_functions(sections)
    assert [one.form and one.form.returns for one in found] == [
        *("texts", "rows", "rows", "ranks", "Exam", "number", "message", "number"),
    ]
    assert [dict(one.arguments) for one in found] == [{"noise": 1}] * 5 + [{}] * 3
