"""Checks of a cluster's nodes: the run folder that they see, and the versions that they have."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from rich.console import Console

from cluster.errors import UserError
from cluster.runtime.nodes import NodeReport, ask_nodes, check_nodes, differences
from pipelines.cli.doctor import examine_cluster

NODE = NodeReport("10.0.0.1", "3.11.9", {"ray": "2.60.0", "torch": "2.13.0"}, [80.0], 8.0, 100.0)


def test_a_node_that_does_not_see_the_run_is_named_with_the_folder() -> None:
    check_nodes([NODE, NODE], Path("/shared/run"))
    blind = replace(NODE, address="10.0.0.2", marked=False)
    with pytest.raises(UserError, match=r"node 10\.0\.0\.2 does not see the run folder /shared/run"):
        check_nodes([NODE, blind], Path("/shared/run"))
    with pytest.raises(UserError, match=r"node 10\.0\.0\.1 does not see /data/chats: put it on storage"):
        check_nodes([replace(NODE, missing=["/data/chats"])], Path("/shared/run"))


def test_versions_that_differ_are_named() -> None:
    other = replace(NODE, address="10.0.0.2", python="3.12.1", versions={"ray": "2.60.0"})
    assert differences([NODE, NODE]) == []
    assert differences([NODE, other]) == [
        "node 10.0.0.2 has python 3.12.1, and node 10.0.0.1 3.11.9",
        "node 10.0.0.2 has torch not at all, and node 10.0.0.1 2.13.0",
    ]


def test_every_node_is_asked(ray_session: None, tmp_path: Path) -> None:
    (node,) = ask_nodes([str(tmp_path), str(tmp_path / "gone")], tmp_path)
    assert node.marked
    assert node.missing == [str(tmp_path / "gone")]
    assert node.versions["ray"] == ray.__version__
    assert list(tmp_path.iterdir()) == []
    printed = io.StringIO()
    examine_cluster(Console(file=printed, width=200), tmp_path)
    assert f"ray {ray.__version__}" in printed.getvalue()
    assert "1 nodes" in printed.getvalue()
    with pytest.raises(UserError, match="is not a folder"):
        examine_cluster(Console(file=printed), tmp_path / "gone")
