"""Images, manifests, batch scripts and dashboards, against the command line, the gateway and its metrics."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from fastapi import FastAPI

from cluster.recipe.loading import load_recipe
from cluster.recipe.serve import Serve
from pipelines.cli.main import app
from serve.gateway import GatewaySettings
from serve.http.metrics import GatewayMetrics
from serve.http.middleware import Middleware
from tests.helpers import DEMO, ROOT
from tests.serve.support.local import Parrot, gateway_app

INFRA = ROOT / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))


def objects() -> list[dict[str, Any]]:
    return [found for path in MANIFESTS for found in yaml.safe_load_all(path.read_text()) if found]


def below(value: Any, key: str) -> Iterator[Any]:
    """Yields every value of a key, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from below(inner, key)
    if isinstance(value, list):
        for inner in value:
            yield from below(inner, key)


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [found for found in objects() if found["kind"] == kind]


def assert_is_a_command(words: list[str]) -> None:
    """Asserts that a command line exists, with its options and recipe keys."""
    assert words[0] == "triptych"
    command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    load_recipe(DEMO, [word for word in words[2:] if "=" in word])


def test_manifests_give_commands_that_exist() -> None:
    (job,) = of_kind("RayJob")
    assert_is_a_command(shlex.split(job["spec"]["entrypoint"]))
    (server,) = of_kind("Deployment")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert_is_a_command(container["args"])
    assert str(Serve().port) == container["args"][container["args"].index("--port") + 1]


def test_names_in_manifests_are_those_of_other_objects() -> None:
    (cluster,), (server,), (service,) = map(of_kind, ("RayCluster", "Deployment", "Service"))
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert server["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert of_kind("RayJob")[0]["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    assert {claim["claimName"] for claim in below(objects(), "persistentVolumeClaim")} == claims
    for pod in [*below(cluster, "template"), server["spec"]["template"]]:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert {mount["name"] for mount in below(spec, "volumeMounts") for mount in mount} == {
            volume["name"] for volume in spec["volumes"]
        }
    (listed,) = of_kind("Kustomization")
    there = {path.name for path in MANIFESTS}
    assert set(listed["resources"]) == there - {"kustomization.yaml", "job.yaml"}
    pinned = re.search(r"ray\[.*\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pinned
    assert cluster["spec"]["rayVersion"] == pinned[1]


def test_probes_ask_paths_that_need_no_key(tmp_path: Path) -> None:
    middleware = gateway_app({"parrot": Parrot()}, GatewaySettings(tmp_path, None))
    assert isinstance(middleware, Middleware)
    assert isinstance(middleware.app, FastAPI)
    routes = {getattr(route, "path", None) for route in middleware.app.routes}
    (container,) = of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/health", "/health", "/ready"]
    for probe in probes.values():
        assert probe["path"] in routes
        assert ports[probe["port"]] == Serve().port


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_images_install_what_is_pinned_and_run_without_root(kind: str) -> None:
    lines = (INFRA / "docker" / "Dockerfile").read_text().splitlines()
    install = next(number for number, line in enumerate(lines) if "infra/install" in line)
    argument = next(number for number, line in enumerate(lines) if line.startswith("ARG KIND="))
    assert argument < install
    assert "infra/requirements/${KIND}.txt" in lines[install]
    assert f"--build-arg KIND={kind} " in "\n".join(lines[:argument])
    assert (INFRA / "requirements" / f"{kind}.txt").exists()
    users = [number for number, line in enumerate(lines) if line.startswith("USER ")]
    assert users
    assert users[-1] < install
    assert lines[users[-1]] == "USER 1000"


def test_rules_and_panels_ask_for_metrics_that_are_exposed() -> None:
    metrics = GatewayMetrics({"policy": "abc"})
    # Series appear with their first sample; their names and kinds are listed from the start.
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", metrics.text().decode()))
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    exposed = {f"{name}{suffix}" for name, kind in kinds.items() for suffix in suffixes[kind]}
    board = json.loads((INFRA / "dashboards" / "serving.json").read_text())
    rules = yaml.safe_load((INFRA / "dashboards" / "alerts.yaml").read_text())
    asked = [*below(board, "expr"), *below(rules, "expr")]
    assert len(asked) > 8
    for expression in asked:
        names = set(re.findall(r"\btriptych_\w+", expression))
        assert names <= exposed, expression
        assert names or expression.startswith("up{")
        by = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
        assert by <= {"le", "key", "model", "weights", "route", "status", "kind", "outcome"}
    assert exposed <= set(re.findall(r"triptych_\w+", " ".join(asked))) | {
        name for name in exposed if name.endswith(("_sum", "_count"))
    }


FAKES = {
    # Runs a step on this machine, with the node's name in its environment.
    "srun": """#!/usr/bin/env bash
for word in "$@"; do
  case $word in --nodelist=*) node=${word#*=} ;; --*) ;; *) break ;; esac
  shift
done
NODE=$node exec "$@"
""",
    "scontrol": "#!/usr/bin/env bash\nprintf 'n1\\nn2\\nn3\\n'\n",
    "hostname": "#!/usr/bin/env bash\necho 10.0.0.1 fe80::1\n",
    # Counts the nodes that have joined.
    "python": """#!/usr/bin/env bash
echo $(( $(grep -c " ray start " "$LOG") - MISSING ))
""",
    "ray": """#!/usr/bin/env bash
[ "$1" = status ] && exit 0
echo "$NODE ray $* $RAY_AUTH_TOKEN" >> "$LOG"
trap 'echo "$NODE ended" >> "$LOG"; exit 0' TERM
while :; do sleep 0.05; done
""",
    "triptych": """#!/usr/bin/env bash
echo "$NODE triptych $*" >> "$LOG"
trap 'echo "$NODE told to end" >> "$LOG"; exit 143' TERM
for _ in $(seq 20); do sleep 0.05; done
exit 7
""",
}


@pytest.mark.slow
def test_the_batch_script_starts_a_cluster_runs_the_command_and_ends_both(tmp_path: Path) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(log),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_ON_NODE": "8",
        "MISSING": "0",
    }
    environment.pop("RAY_AUTH_TOKEN", None)
    script = ["bash", str(INFRA / "slurm" / "triptych.sbatch")]
    done = subprocess.run(
        [*script, "run", "my.yaml", "run=/shared/my"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 7, done.stderr
    lines = log.read_text().splitlines()
    started = {line.split()[0]: line.split() for line in lines if " ray start " in line}
    assert "--head" in started["n1"]
    assert {"--node-ip-address=10.0.0.1", "--port=6379", "--num-cpus=8"} <= set(started["n1"])
    assert all("--address=10.0.0.1:6379" in started[node] for node in ("n2", "n3"))
    # One secret for all.
    assert len({words[-1] for words in started.values()}) == 1
    assert len(started["n1"][-1]) == 64
    (command,) = [line for line in lines if " triptych " in line]
    assert command == "n1 triptych run my.yaml run=/shared/my cluster.address=10.0.0.1:6379"
    assert_is_a_command([word for word in command.split()[1:] if "/shared" not in word])
    assert {line for line in lines if line.endswith(" ended")} == {"n1 ended", "n2 ended", "n3 ended"}
    assert subprocess.run(script, env=environment, capture_output=True, timeout=30).returncode == 2
    # A node that does not join: the command, which would plan without it, is not run.
    log.unlink()
    short = subprocess.run(
        [*script, "run", "my.yaml"],
        env=environment | {"MISSING": "1", "JOIN_SECONDS": "2"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert short.returncode == 1
    assert "only 2 of 3 nodes joined in 2 s" in short.stderr
    assert " triptych " not in log.read_text()
