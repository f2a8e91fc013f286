"""The OpenAPI document against what is really served: its routes, and requests that are made from it."""

import importlib.metadata
import json

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from fimaq.deploy.serve.rest.app import OPENAPI, routes

DOCUMENT = json.loads(OPENAPI.read_text())
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]


def named(document):
    """The document, its paths filled with names of which some are served."""
    text = json.dumps(document)
    for name, values in (("model", ["toy", "other"]), ("version", ["1", "2"])):
        anything = f'"name": "{name}", "in": "path", "required": true, "schema": {{"type": "string"}}'
        assert anything in text
        text = text.replace(anything, anything.replace('{"type": "string"}', json.dumps({"enum": values})))
    return json.loads(text)


schema = schemathesis.openapi.from_dict(named(DOCUMENT))


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_answer_is_undocumented(server, case):
    response = case.call(base_url=server.url)
    case.validate_response(response, checks=CHECKS)


def test_the_document_has_the_routes_there_are():
    documented = {
        (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    served = {(route.path, method.lower()) for route in routes() for method in route.methods - {"HEAD"}}
    assert documented == served


def test_the_document_is_served_and_has_the_projects_version(server):
    assert server.json("GET", "/openapi.json") == (200, DOCUMENT)
    assert DOCUMENT["info"]["version"] == importlib.metadata.version("fimaq-tool")
