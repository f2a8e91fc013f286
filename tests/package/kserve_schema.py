"""Write kserve.schema.json from the types in KServe's Python SDK: every key it knows is listed, no other is allowed.

    pip download --no-deps kserve && python tests/package/kserve_schema.py kserve-*.whl

The SDK needs an older protobuf than the tool, hence a copy of its keys. Kubernetes' own types
refer to the schemas of kubernetes-validate.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

ROOTS = ("V1alpha1ServingRuntime", "V1beta1InferenceService")

CHECKED = (
    *ROOTS,
    "V1alpha1ServingRuntimeSpec",
    "V1alpha1SupportedModelFormat",
    "V1beta1InferenceServiceSpec",
    "V1beta1ModelFormat",
    "V1beta1ModelSpec",
    "V1beta1PredictorSpec",
)
"""Types that packages use; the others are allowed and not looked into."""

CORE = "https://kubernetes.io/api/_definitions.json#/$defs/"

ELSEWHERE = {
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
}
PLAIN = {"str": "string", "int": "integer", "bool": "boolean"}


def schema(name: str) -> dict[str, Any]:
    """``list[V1Container]`` and the like as JSON Schema."""
    if listed := re.fullmatch(r"list\[(.+)\]", name):
        return {"type": "array", "items": schema(listed[1])}
    if mapped := re.fullmatch(r"dict\(str, (.+)\)", name):
        return {"type": "object", "additionalProperties": schema(mapped[1])}
    if name in PLAIN:
        return {"type": PLAIN[name]}
    if name in CHECKED:
        return {"$ref": f"#/$defs/{name}"}
    if name in ELSEWHERE:
        return {"$ref": CORE + ELSEWHERE[name]}
    core = re.fullmatch(r"V1([A-Z]\w+)", name)
    return {"$ref": f"{CORE}io.k8s.api.core.v1.{core[1]}"} if core else {}


def read_type(source: str) -> dict[str, Any]:
    """The schema of the class in one of the SDK's files."""
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id in ("openapi_types", "attribute_map")
    }
    keys = tables["attribute_map"]
    required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)
    return {
        "type": "object",
        "properties": {keys[field]: schema(kind) for field, kind in sorted(tables["openapi_types"].items())},
        "required": sorted(keys[field] for field in set(required)),
        "additionalProperties": False,
    }


def main(wheel: str) -> None:
    """Read the wheel and write the schema beside this file."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name: re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in CHECKED}
        types = {name: read_type(archive.read(f"kserve/models/{file}.py").decode()) for name, file in names.items()}
    text = {"$comment": f"{Path(wheel).name}, Apache-2.0; written by kserve_schema.py", "$defs": types}
    Path(__file__).with_name("kserve.schema.json").write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
