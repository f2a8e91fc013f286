"""KServe's resources: their keys and types by the schemas of KServe and Kubernetes, and what they say to each other."""

import copy
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from referencing import Registry, Resource

from fimaq.cli.serve import command
from fimaq.deploy.package import KServe, package
from fimaq.deploy.package.model import Model
from fimaq.deploy.serve.rest.app import routes
from fimaq.toolchain.errors import UsageError

SCHEMA = json.loads((Path(__file__).parent / "kserve.schema.json").read_text())
KUBERNETES = kubernetes_validate.latest_version()
ROOTS = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}


@pytest.fixture(scope="module")
def valid():
    """Raises for a resource that has a key KServe or Kubernetes does not know, or a value of another type."""
    place = f"kubernetes-json-schema/v{KUBERNETES}-local-strict/_definitions.json"
    core = Resource.from_contents(json.loads(files(kubernetes_validate).joinpath(place).read_text()))
    registry = core @ Registry()

    def check(resource):
        root = ROOTS[resource["apiVersion"], resource["kind"]]
        schema = {**SCHEMA, "$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": f"#/$defs/{root}"}
        jsonschema.Draft202012Validator(schema, registry=registry).validate(resource)

    return check


@pytest.fixture
def resources(model, tmp_path):
    """Write a package and return its ServingRuntime and InferenceService."""

    def write(target=None, name="tiny"):
        package(model, tmp_path / "out", target or KServe(), name=name, force=True)
        return [
            yaml.safe_load((tmp_path / "out" / f"{kind}.yaml").read_text())
            for kind in ("servingruntime", "inferenceservice")
        ]

    return write


def places(value):
    """Every object in a tree of objects and lists."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from places(item)


def test_both_resources_are_valid(resources, valid):
    for resource in resources():
        valid(resource)


def test_the_schemas_refuse_a_key_that_is_not_known_wherever_it_stands(resources, valid):
    # Where keys are free: what a resource is labelled and annotated with, and how much of which resource.
    free = ("labels", "annotations", "requests", "limits")
    for resource in resources():
        for index in range(len(list(places(resource)))):
            changed = copy.deepcopy(resource)
            place = list(places(changed))[index]
            if any(place is parent.get(key) for parent in places(changed) for key in free):
                continue
            place["notAKey"] = "x"
            with pytest.raises(jsonschema.ValidationError):
                valid(changed)


def test_kubernetes_takes_the_server_as_a_pod(resources):
    runtime, service = resources()
    (container,) = runtime["spec"]["containers"]
    predictor = service["spec"]["predictor"]
    spec = {
        "containers": [{**container, "resources": predictor["model"]["resources"]}],
        "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_service_asks_for_what_the_runtime_offers(resources):
    runtime, service = resources()
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert {**model["modelFormat"], "autoSelect": True} in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_one_port_is_served_probed_and_scraped(resources):
    runtime, _ = resources()
    (container,) = runtime["spec"]["containers"]
    port = int(container["args"][container["args"].index("--port") + 1])
    assert [item["containerPort"] for item in container["ports"]] == [port]
    assert [container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")] == [port, port]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(port)


def test_the_arguments_start_a_server_that_others_reach_where_it_is_probed(resources):
    runtime, _ = resources()
    (container,) = runtime["spec"]["containers"]
    serve, *words = container["args"]
    options = command.make_context(serve, words).params
    assert (serve, str(options["source"]), options["host"]) == ("serve", "/mnt/models", "0.0.0.0")
    asked = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    asked.add(runtime["spec"]["annotations"]["prometheus.kserve.io/path"])
    assert asked - {route.path for route in routes()} == set()


def test_the_server_may_do_as_little_as_possible(resources):
    # What Kubernetes' "restricted" pod security standard wants of a container, and a root that cannot be written to.
    runtime, _ = resources()
    (container,) = runtime["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_what_is_chosen_is_in_the_resources(resources, valid):
    target = KServe(
        image="registry.example/serve@sha256:0",
        storage_uri="s3://bucket/a b".replace(" ", "%20"),
        min_replicas=2,
        max_replicas=9,
        cpu="500m",
        memory="3Gi",
    )
    runtime, service = resources(target)
    valid(service)
    predictor = service["spec"]["predictor"]
    assert runtime["spec"]["containers"][0]["image"] == "registry.example/serve@sha256:0"
    assert predictor["model"]["storageUri"] == "s3://bucket/a%20b"
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 9)
    amounts = {"cpu": "500m", "memory": "3Gi"}
    assert predictor["model"]["resources"] == {"requests": amounts, "limits": amounts}


def test_memory_grows_with_the_model(resources, monkeypatch):
    monkeypatch.setattr(Model, "stored_bytes", 350_000_000)
    _, service = resources()
    # 256 MiB and four times 350 MB, in steps of 256 MiB.
    assert service["spec"]["predictor"]["model"]["resources"]["limits"]["memory"] == "1792Mi"


@pytest.mark.parametrize("name", ["no", "null", "true", "y", "e1"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(resources, valid, name):
    _, service = resources(name=name)
    valid(service)
    assert service["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("storage_uri", ["", "bucket/x", "s3://", 's3://a"b', "s3://a\\b", "s3://a b", "s3://a\n", "s3://a\0"]),
        ("cpu", ["", "0", "0m", "0.0", "-1", "1 core", "1e3", "two"]),
        ("memory", ["", "0Gi", "1", "1K", "1GB", "1.5 Gi"]),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(field, values):
    for value in values:
        with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} is"):
            KServe(**{field: value})


def test_fewer_servers_at_most_than_at_least_are_refused():
    with pytest.raises(UsageError, match="--max-replicas is 1; wanted 2"):
        KServe(min_replicas=2, max_replicas=1)
