"""One application of Ray Serve beside those of others."""

from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from cluster.keys import new_key
from cluster.run.folder import RunFolder
from cluster.run.server_client import application_of, write_server
from serve.application import (
    GatewayNode,
    actor_environment,
    application_name,
    end_leftover,
    gateway_node,
    serve_instance,
    unfinished,
    wait_until_running,
)
from serve.compat.ray_serve import start_application
from serve.server import APPLICATION, listening_notice
from tests.serve.conftest import Server


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Small:
    """Stands for the models of a second run."""


@pytest.mark.timeout(120)
def test_the_end_of_a_server_leaves_those_of_others_alone(server: Server, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "second")
    name = application_name(run)
    with serve_instance(local=False):
        start_application(Small.bind(), name)  # type: ignore[attr-defined]
        wait_until_running(name, 60)
        assert unfinished(name) == "Small (running)"
        write_server(run, "http://127.0.0.1:1", new_key("(owner)", ("admin",))[1], application=name)
        # As after a SIGKILL of the command: the next one of the same run ends what is left.
        end_leftover(run)
    assert unfinished(name) == ""
    assert set(serve.status().applications) == {APPLICATION}
    assert httpx.get(f"{server.url}/ready").status_code == 200
    # The name of an application that is gone, or of none, is no hindrance.
    end_leftover(run)
    end_leftover(RunFolder(tmp_path / "third"))


def test_no_two_servers_have_one_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert application_name(run) != application_name(run)
    assert application_of(run.root) is None


def test_the_gateway_runs_on_the_node_of_the_command(ray_session: None) -> None:
    node = gateway_node()
    (own,) = ray.nodes()
    assert node == GatewayNode(f"node:{own['NodeManagerAddress']}", own["NodeManagerAddress"], is_here=True)
    assert node.resource in own["Resources"]


def test_messages_about_the_address_name_the_node() -> None:
    node = GatewayNode("node:10.0.0.2", "10.0.0.2", is_here=False)
    assert listening_notice(node, "0.0.0.0", 8000) == "it listens on node 10.0.0.2"
    alone = listening_notice(node, "127.0.0.1", 8000)
    assert "node 10.0.0.2 for programs of that node alone" in alone
    assert "ssh -N -L 8000:127.0.0.1:8000 10.0.0.2" in alone


def test_actors_of_a_foreign_controller_get_the_code_of_the_driver(ray_session: None) -> None:
    assert actor_environment({"A": "1"})["env_vars"]["A"] == "1"
