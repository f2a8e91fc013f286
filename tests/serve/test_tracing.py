"""Traces, where OpenTelemetry's variables ask for them: a collector that listens."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector():
    """The address of a collector and what it was sent."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", received
        listening.shutdown()
        thread.join()


def test_a_request_is_a_span_below_its_callers(start, toy, toy_file, binary_request, collector):
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    address, received = collector
    server = start(toy_file, env={"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"})
    body, headers = binary_request(toy.images(2))
    server.ask("POST", "/v2/models/toy/infer", body, {**headers, "traceparent": f"00-{CALLER}-00f067aa0ba902b7-01"})
    assert server.stop() == 0
    requests = [trace_service.ExportTraceServiceRequest.FromString(content) for _, content in received]
    spans = [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    (span,) = [span for span in spans if span.name == "infer"]
    values = {item.key: item.value for item in span.attributes}
    assert {path for path, _ in received} == {"/v1/traces"}
    assert span.trace_id.hex() == CALLER
    assert values["images"].int_value == 2
    assert values["model"].string_value == "toy"
