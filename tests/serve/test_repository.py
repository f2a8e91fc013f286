"""Repositories: what is found, what replaces what, and that a bad file replaces nothing."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fimaq.deploy.serve.loading import load
from fimaq.deploy.serve.repository import Repository
from fimaq.toolchain.errors import EnvironmentProblem, InputError, UsageError

ADMIN = ("--admin", "--versions", 2)


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def found(source, **options):
    return [(file.name, file.version, file.path) for file in Repository(source, **options).scan()]


# What lies on disk


def test_tritons_layout_and_plain_files_side_by_side(tmp_path):
    for name in ("vit/1/model.onnx", "vit/2/model.onnx", "vit/10/model.onnx", "swin.onnx", "deit/3/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in (
        "vit/config.pbtxt",
        "vit/07/model.onnx",
        "vit/new/model.onnx",
        "vit/4/other.onnx",
        ".hidden/1/model.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    newest = [
        ("deit", "3", tmp_path / "deit/3/model.onnx"),
        ("swin", "1", tmp_path / "swin.onnx"),
        ("vit", "10", tmp_path / "vit/10/model.onnx"),
    ]
    assert found(tmp_path) == newest
    two = found(tmp_path, newest=2)
    assert [(name, version) for name, version, _ in two if name == "vit"] == [("vit", "2"), ("vit", "10")]


def test_what_is_left_out_is_said(tmp_path, caplog):
    names = ("vit/1/model.onnx", "vit/config.pbtxt", "README.md", ".staged/1/model.onnx", "vit/.2/model.onnx", "b.onnx")
    ignored = {
        "vit/07": "no version: wanted a whole number from 1 up",
        "vit/v2": "no version",
        "vit/4": "holds no model.onnx",
        "bare": "holds no <version>/model.onnx",
        "a b": "name is no model's",
        "my model.onnx": "name is no model's",
        "vit.onnx": "a folder has the same name",
    }
    for name in ignored:
        path = tmp_path / name if name.endswith(".onnx") else tmp_path / name / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name in (*names, "bare/model.onnx", "vit/07/model.onnx", "vit/v2/model.onnx", "a b/1/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [name for name, _, _ in found(tmp_path)] == ["b", "vit"]
    said = {record.fields["path"]: record.fields["reason"] for record in caplog.records}
    assert said.keys() == {str(tmp_path / name) for name in ignored}
    for name, reason in ignored.items():
        assert reason in said[str(tmp_path / name)]


def test_a_run_folder_is_told_from_a_repository(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is a run of `fimaq-tool quantize`, which `fimaq-tool export`"):
        Repository(tmp_path).scan()


def test_what_may_not_be_read_is_said_with_who_wanted_it(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=rf"{tmp_path} cannot be read by user {os.getuid()} .*Give that user access"):
        Repository(tmp_path).scan()


def test_a_file_that_may_not_be_read_is_not_loaded(toy_file, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (toy_file, os.R_OK))
    with pytest.raises(InputError, match=rf"toy\.onnx cannot be read by user {os.getuid()} "):
        load(toy_file, "cpu", 1)


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [("deit-w4.onnx", None, "deit-w4"), ("my model (1).onnx", None, "my-model-1"), ("x.onnx", "vit", "vit")],
)
def test_a_single_file_is_called_after_itself_unless_told(tmp_path, file, name, expected):
    (tmp_path / file).write_bytes(b"x")
    assert found(tmp_path / file, name=name) == [(expected, "1", tmp_path / file)]


@pytest.mark.parametrize(
    ("source", "name", "error", "message"),
    [
        ("absent.onnx", None, InputError, "is not there"),
        (".", None, InputError, "holds no models"),
        (".", "vit", UsageError, "is for a single file"),
        ("absent.onnx", "../vit", UsageError, "wanted letters, digits"),
        ("absent.onnx", "-x", UsageError, "wanted letters, digits"),
    ],
)
def test_sources_and_names_that_cannot_be_served(tmp_path, source, name, error, message):
    with pytest.raises(error, match=message):
        Repository(tmp_path / source, name).scan()


# What is loaded


def external(path, location):
    """Move the weights of a model to a file it names by ``location``."""
    model = onnx.load(path)
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == "weights"]
    content = weights.raw_data
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return content


@pytest.mark.parametrize("place", ["beside", "above", "absolute", "link"])
def test_weights_outside_the_models_folder_are_not_read(toy, tmp_path, place):
    path = toy.write(tmp_path / "toy" / "1" / "model.onnx")
    outside = tmp_path / "secret.bin"
    location = {"beside": "w.bin", "above": "../../secret.bin", "absolute": str(outside), "link": "link.bin"}[place]
    content = external(path, location)
    outside.write_bytes(content)
    (path.parent / "w.bin").write_bytes(content)
    (path.parent / "link.bin").symlink_to(outside)
    if place == "beside":
        assert load(path, "cpu", 1).preprocessing == toy.preprocessing
    else:
        with pytest.raises(InputError, match="External data path"):
            load(path, "cpu", 1)


def test_a_runtime_that_would_read_any_file_is_refused(toy_file, monkeypatch):
    from fimaq.deploy.serve import loading

    class Old:
        __version__ = "1.23.2"

    monkeypatch.setattr(loading, "onnxruntime_module", lambda: Old)
    with pytest.raises(EnvironmentProblem, match=r"onnxruntime is 1\.23\.2; wanted 1\.24 or newer"):
        load(toy_file, "cpu", 1)


@pytest.mark.parametrize(("scale", "message"), [(np.nan, "not finite"), (np.inf, "not finite")])
def test_a_model_that_gives_no_numbers_is_not_loaded(toy, tmp_path, scale, message):
    with pytest.raises(InputError, match=message):
        load(toy.write(tmp_path / "bad.onnx", scale), "cpu", 1)


def test_a_file_without_preprocessing_is_not_loaded(toy, tmp_path):
    with pytest.raises(InputError, match=r"does not carry fimaq\.preprocessing"):
        load(toy.write(tmp_path / "bare.onnx", metadata={}), "cpu", 1)


def test_classes_must_have_names(toy, tmp_path):
    metadata = {"fimaq.preprocessing": toy.preprocessing.to_json(), "fimaq.classes": json.dumps({"names": [1] * 7})}
    with pytest.raises(InputError, match="names are no strings"):
        load(toy.write(tmp_path / "bad.onnx", metadata=metadata), "cpu", 1)


# A running server


@pytest.fixture
def repository(toy, tmp_path):
    folder = tmp_path / "repository"
    toy.write(folder / "toy" / "1" / "model.onnx")
    return folder


def ask(server, toy, binary_request, version=None):
    """How many times the toy's own logits the answer is."""
    images = toy.images(1)
    path = f"/v2/models/toy{f'/versions/{version}' if version else ''}/infer"
    status, answer = server.json("POST", path, *binary_request(images))
    assert status == 200, answer
    (output,) = answer["outputs"]
    return answer["model_version"], round(float(np.median(np.array(output["data"]) / toy.logits(images)[0])), 3)


def gauge(server, name):
    """The lines of a metric."""
    text = server.ask("GET", "/metrics")[2].decode()
    return [line for line in text.splitlines() if line.startswith(name)]


def index(server):
    return {
        (entry["name"], entry["version"]): (entry["state"], entry["reason"])
        for entry in server.json("POST", "/v2/repository/index", {})[1]
    }


def test_sighup_serves_the_newest_version_and_lets_go_of_the_old(start, toy, repository, binary_request):
    server = start(repository)
    assert ask(server, toy, binary_request) == ("1", 1.0)
    toy.write(repository / "toy" / "2" / "model.onnx", scale=2)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ask(server, toy, binary_request) == ("2", 2.0))
    assert server.json("GET", "/v2/models/toy/versions/1")[0] == 404
    assert index(server) == {("toy", "2"): ("READY", "")}


@pytest.mark.parametrize("damage", ["cut", "nan", "no metadata"])
def test_a_broken_new_version_replaces_nothing(start, toy, repository, binary_request, damage):
    server = start(repository)
    path = repository / "toy" / "2" / "model.onnx"
    toy.write(path, scale=np.nan if damage == "nan" else 2, metadata={} if damage == "no metadata" else None)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("toy", "2") in index(server))
    assert index(server)["toy", "2"][0] == "UNAVAILABLE"
    assert str(path) in index(server)["toy", "2"][1]
    assert ask(server, toy, binary_request) == ("1", 1.0)
    assert server.json("GET", "/v2/health/ready")[0] == 200
    assert gauge(server, "fimaq_load_failed") == ['fimaq_load_failed{model="toy",version="2"} 1.0']
    toy.write(path, scale=2)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ask(server, toy, binary_request) == ("2", 2.0))
    assert gauge(server, "fimaq_load_failed") == []


def test_a_broken_model_that_is_taken_away_is_forgotten(start, toy, repository):
    server = start(repository)
    path = toy.write(repository / "bad.onnx", metadata={})
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("bad", "1") in index(server))
    path.unlink()
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("bad", "1") not in index(server))
    assert gauge(server, "fimaq_load_failed") == []


def test_a_file_that_was_overwritten_with_a_broken_one_is_served_as_it_was(start, toy, repository, binary_request):
    server = start(repository)
    path = repository / "toy" / "1" / "model.onnx"
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[:500])
    os.replace(new, path)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: index(server)["toy", "1"][1])
    assert index(server)["toy", "1"][0] == "READY"
    assert ask(server, toy, binary_request) == ("1", 1.0)


def test_two_versions_can_be_asked_at_once(start, toy, tmp_path, binary_request):
    toy.write(tmp_path / "toy" / "9" / "model.onnx")
    toy.write(tmp_path / "toy" / "10" / "model.onnx", scale=2)
    server = start(tmp_path, *ADMIN)
    assert ask(server, toy, binary_request) == ("10", 2.0)
    assert ask(server, toy, binary_request, version=9) == ("9", 1.0)
    assert server.json("GET", "/v2/models/toy")[1]["versions"] == ["9", "10"]
    config = server.json("GET", "/v2/models/toy/versions/9/config")[1]
    assert config["version_policy"] == {"latest": {"num_versions": 2}}


def test_load_and_unload_by_request(start, toy, repository, binary_request):
    server = start(repository, *ADMIN)
    models = "/v2/repository/models"
    assert server.json("POST", f"{models}/toy/unload", {}) == (200, {})
    assert server.json("GET", "/v2/models/toy")[0] == 404
    assert index(server) == {("toy", "1"): ("UNAVAILABLE", "unloaded")}
    server.process.send_signal(signal.SIGHUP)  # what was unloaded stays so
    toy.write(repository / "other.onnx", scale=3)
    wait_for(lambda: server.json("POST", f"{models}/other/load", {}) == (200, {}))
    assert server.json("GET", "/v2/models/toy")[0] == 404
    assert server.json("POST", f"{models}/toy/load", {"parameters": {}}) == (200, {})
    assert ask(server, toy, binary_request) == ("1", 1.0)
    assert server.json("POST", f"{models}/toy/load", {"parameters": {"file:1/model.onnx": "AA=="}})[0] == 400
    assert server.json("POST", f"{models}/none/load", {})[0] == 400
    assert server.json("POST", f"{models}/..%2F..%2Fetc/load", {})[0] in (400, 404)
    assert server.json("POST", f"{models}/none/unload", {})[0] == 404


def test_what_is_gone_from_disk_is_served_until_the_reload_only(start, toy, repository, binary_request):
    toy.write(repository / "other.onnx", scale=3)
    server = start(repository)
    shutil.rmtree(repository / "toy")
    assert ask(server, toy, binary_request) == ("1", 1.0)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.json("GET", "/v2/models/toy")[0] == 404)
    shutil.rmtree(repository)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(event["event"] == "reload failed" for event in server.events()))
    assert server.json("GET", "/v2/models/other")[0] == 200
    assert gauge(server, "fimaq_repository_unreadable") == ["fimaq_repository_unreadable 1.0"]
    toy.write(repository / "other.onnx", scale=3)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: gauge(server, "fimaq_repository_unreadable") == ["fimaq_repository_unreadable 0.0"])


def test_the_index_knows_of_unloaded_versions_what_is_on_disk(start, toy, repository):
    server = start(repository, *ADMIN)
    toy.write(repository / "other.onnx")
    path = toy.write(repository / "toy" / "2" / "model.onnx")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("toy", "2") in index(server))
    assert server.json("POST", "/v2/repository/models/toy/unload", {}) == (200, {})
    shutil.rmtree(path.parent)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("toy", "2") not in index(server))
    assert index(server)["toy", "1"] == ("UNAVAILABLE", "unloaded")


def test_a_reload_does_not_load_again_what_has_not_changed(start, toy, repository):
    server = start(repository)
    toy.write(repository / "zoo.onnx")  # comes after the other
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("zoo", "1") in index(server))
    loaded = [event["model"] for event in server.events() if event["event"] == "loaded"]
    assert loaded == ["toy", "zoo"]


def test_the_index_can_be_asked_for_what_is_ready_only(start, toy, repository):
    server = start(repository, *ADMIN)
    toy.write(repository / "bad.onnx", metadata={})
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("bad", "1") in index(server))
    ready = server.json("POST", "/v2/repository/index", {"ready": True})[1]
    assert [entry["name"] for entry in ready] == ["toy"]
    assert server.json("POST", "/v2/repository/index", json.dumps({"ready": 1}).encode())[0] == 400


def test_a_file_of_the_same_size_is_another_one(start, toy, repository, binary_request):
    server = start(repository)
    size = (repository / "toy/1/model.onnx").stat().st_size
    new = toy.write(repository / "toy/1/new", scale=2.0)
    assert new.stat().st_size == size
    os.replace(new, repository / "toy/1/model.onnx")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ask(server, toy, binary_request) == ("1", 2.0))


def test_a_file_that_runs_on_one_image_only_is_not_loaded(toy, tmp_path):
    path = toy.write(tmp_path / "toy.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 8, 8], np.int64), "one_image"))
    for node in model.graph.node:
        node.input[:] = ["first_image" if name == "image" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Reshape", ["image", "one_image"], ["first_image"]))
    onnx.save(model, path)
    with pytest.raises(InputError, match="fails when run"):
        load(path, "cpu", 1)
