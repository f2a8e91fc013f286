"""What the project's images and its example deployment are made from: by their own linters and schemas."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fimaq.cli.serve import command
from fimaq.deploy.serve.metrics import Metrics
from fimaq.deploy.serve.registry import Registry
from fimaq.deploy.serve.rest.context import NO_KEY_NEEDED
from fimaq.deploy.serve.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "examples" / "compose"
BIN = Path(sys.executable).parent


def pins(name):
    """Package -> version in a lock file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in (line.split("==") for line in lines)}


def named():
    """Packages that requirements-serve.in asks for."""
    lines = (ROOT / "requirements-serve.in").read_text().splitlines()
    return {canonicalize_name(line) for line in lines if line and not line.startswith("#")}


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool, Debian's package prometheus has it")
    return found


# Images


def test_hadolint_finds_nothing_in_the_dockerfile():
    found = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_context_has_what_the_dockerfile_copies_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    sources = {source for line in copied for source in line.split()[:-1]}
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert sorted(let_through) == sorted(sources)


def test_the_servers_lock_is_for_what_is_asked_for():
    assert named() - pins("requirements-serve.lock").keys() == set()


def test_the_server_runs_with_the_versions_the_tool_was_tested_with():
    tool, server = pins("requirements.lock"), pins("requirements-serve.lock")
    assert {name: server[name] for name in server.keys() & tool} == {name: tool[name] for name in server.keys() & tool}
    assert server["onnxruntime"] == tool["onnxruntime-gpu"]


def test_the_servers_image_has_no_torch():
    assert pins("requirements-serve.lock").keys() & {"torch", "torchvision", "timm", "onnxruntime-gpu"} == set()


def test_the_servers_image_has_all_that_serving_can_use():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted, locked = (
        [Requirement(line) for line in (*extras["serve"], *extras["otel"])],
        pins("requirements-serve.lock"),
    )
    assert {canonicalize_name(item.name) for item in wanted} - named() == set()
    assert [str(item) for item in wanted if locked[canonicalize_name(item.name)] not in item.specifier] == []


# The example with Prometheus


def test_compose_takes_the_example():
    checker = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / "compose.yaml"]
    checked = subprocess.run(checker, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_example_is_of_one_piece():
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    (scrape,) = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["serve:8080"]}]
    assert services["serve"]["ports"] == ["127.0.0.1:8080:8080"]
    assert f"AS {services['serve']['build']['target']}\n" in (ROOT / "Dockerfile").read_text()
    files = [volume.split(":")[0] for volume in services["prometheus"]["volumes"] if volume.startswith("./")]
    assert [name for name in files if not (COMPOSE / name).is_file()] == []


def test_prometheus_takes_its_configuration_and_the_alerts(promtool):
    checked = subprocess.run([promtool, "check", "config", COMPOSE / "prometheus.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_are_about_metrics_that_the_server_has():
    exported = Metrics(Registry(Settings(Path("models"))), lambda: True).text().decode()
    known = set(re.findall(r"^# TYPE (\w+) ", exported, flags=re.MULTILINE))
    asked = set(re.findall(r"\bfimaq_\w+", (COMPOSE / "alerts.yml").read_text()))
    assert {name for name in asked if name.removesuffix("_bucket") not in known} == set()


def series(name, start, step, **labels):
    """One line of a series as promtool writes it: sixty minutes."""
    text = ", ".join(f'{key}="{value}"' for key, value in {"job": "fimaq", "instance": "a", **labels}.items())
    return {"series": f"{name}{{{text}}}", "values": f"{start}+{step}x60"}


def answers(status, step, operation="infer"):
    return series("fimaq_requests_total", 0, step, status=status, operation=operation)


@pytest.mark.parametrize(
    ("data", "alerts"),
    [
        ([series("up", 1, 0), series("fimaq_ready", 1, 0), answers(200, 600), answers(503, 6)], []),
        ([series("up", 0, 0)], ["FimaqDown"]),
        ([series("up", 1, 0), series("fimaq_ready", 0, 0)], ["FimaqDown"]),
        ([answers(200, 600), answers(503, 60)], ["FimaqOverloaded"]),
        ([answers("OK", 600, "ModelInfer"), answers("UNAVAILABLE", 60, "ModelInfer")], ["FimaqOverloaded"]),
        ([answers(200, 600), answers(500, 1)], ["FimaqFailing"]),
        ([series("fimaq_load_failed", 1, 0, model="a", version="2")], ["FimaqLoadFailed"]),
        ([series("fimaq_repository_unreadable", 1, 0)], ["FimaqLoadFailed"]),
        ([series("fimaq_repository_unreadable", 0, 0)], []),
        (
            [
                series("fimaq_request_seconds_bucket", 0, 90, operation="infer", le="1.0"),
                series("fimaq_request_seconds_bucket", 0, 100, operation="infer", le="+Inf"),
                series("fimaq_request_seconds_bucket", 0, 100, operation="infer", le="2.5"),
            ],
            ["FimaqSlow"],
        ),
    ],
)
def test_an_alert_rings_when_it_should(promtool, tmp_path, data, alerts):
    def rings(name):
        """Whether promtool denies that nothing rings."""
        silent = [{"eval_time": "45m", "alertname": name, "exp_alerts": []}]
        tests = [{"interval": "1m", "input_series": data, "alert_rule_test": silent}]
        (tmp_path / "test.yml").write_text(
            yaml.safe_dump({"rule_files": [str(COMPOSE / "alerts.yml")], "tests": tests})
        )
        return subprocess.run([promtool, "test", "rules", tmp_path / "test.yml"], capture_output=True).returncode == 1

    names = re.findall(r"alert: (\w+)", (COMPOSE / "alerts.yml").read_text())
    assert [name for name in names if rings(name)] == alerts


# Plain Kubernetes


@pytest.fixture
def deployment():
    deployment, service = yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "serve.yaml").read_text())
    return deployment, service


def test_kubernetes_takes_the_example(deployment):
    for resource in deployment:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_example_in_kubernetes_is_of_one_piece(deployment):
    deployment, service = deployment
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    serve, *words = container["args"]
    options = command.make_context(serve, words).params
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": options["port"], "grpc": options["grpc_port"]}
    assert options["host"] == "0.0.0.0"
    assert pod["terminationGracePeriodSeconds"] > options["timeout"] + options["drain"]
    asked = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert asked <= {*NO_KEY_NEEDED}
    places = [str(options["source"]), str(options["keys"].parent)]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == places
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert deployment["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    assert f"USER {pod['securityContext']['fsGroup']}:" in (ROOT / "Dockerfile").read_text()
