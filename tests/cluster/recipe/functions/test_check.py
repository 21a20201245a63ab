from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.functions import check_function

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
