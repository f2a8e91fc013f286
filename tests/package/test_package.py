"""Every package: what is in it, what it is called, that it is there whole or not at all, and the command."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fimaq.cli.main import cli
from fimaq.deploy.package import TARGETS, Docker, KServe, Triton, package
from fimaq.deploy.package.names import DNS_NAME, PATH_NAME
from fimaq.deploy.serve.repository import Repository
from fimaq.toolchain.errors import InputError, UsageError

EVERY = [target() for target in TARGETS.values()]


def contents(folder):
    """Path -> bytes of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Every target


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.target)
def test_the_server_finds_the_model_in_every_package(model, tmp_path, target):
    out = tmp_path / "out"
    package(model, out, target, name="other")
    root = out if target.target == "triton" else out / "models"
    assert [(file.name, file.version) for file in Repository(root).scan()] == [("other", "1")]
    assert (root / "other" / "1" / "model.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.target)
def test_a_file_that_takes_pixels_is_packaged_for_every_target(onnx_file, tmp_path, target):
    source = onnx_file(tmp_path / "tiny.onnx", pixels=True)
    package(source, tmp_path / "out", target)
    (copied,) = (tmp_path / "out").rglob("model.onnx")
    assert copied.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.target)
def test_the_manifest_names_every_file_with_its_hash(model, tmp_path, target):
    result = package(model, tmp_path / "out", target)
    found = contents(tmp_path / "out")
    manifest = json.loads(found.pop("fimaq-package.json"))
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert manifest["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert result == {"package": str(tmp_path / "out"), **manifest}


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.target)
def test_a_file_that_could_not_be_served_is_refused(onnx_file, tmp_path, target):
    bare = onnx_file(tmp_path / "bare.onnx", metadata={})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    for path, message in ((bare, "does not carry fimaq.preprocessing"), (broken, "not a usable"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=message):
            package(path, tmp_path / "out", target, name="tiny")
    assert not (tmp_path / "out").exists()


def test_weights_outside_the_file_come_along(onnx_file, tmp_path):
    # A file for each: the initializer's and the node's.
    outside = {"save_as_external_data": True, "all_tensors_to_one_file": False, "convert_attribute": True}
    source = onnx_file(tmp_path / "in" / "tiny.onnx", **outside, size_threshold=0)
    package(source, tmp_path / "out", Triton())
    inputs = {"image": np.random.default_rng(1).standard_normal((2, 3, 8, 6)).astype(np.float32)}
    expected = onnxruntime.InferenceSession(source).run(None, inputs)
    assert len(list(source.parent.iterdir())) == 3
    shutil.rmtree(source.parent)
    found = onnxruntime.InferenceSession(tmp_path / "out" / "tiny" / "1" / "model.onnx").run(None, inputs)
    np.testing.assert_array_equal(found, expected)


def test_weights_under_the_name_of_the_copy_are_refused(onnx_file, tmp_path):
    source = onnx_file(
        tmp_path / "in" / "tiny.onnx", save_as_external_data=True, location="model.onnx", size_threshold=0
    )
    with pytest.raises(InputError, match=r"keeps weights in 'model\.onnx'"):
        package(source, tmp_path / "out", Docker())


# Names


@pytest.mark.parametrize(
    ("stem", "path_name", "dns_name"),
    [
        ("deit-tiny", "deit-tiny", "deit-tiny"),
        ("deit_tiny.w4a4", "deit_tiny.w4a4", "deit-tiny-w4a4"),
        (" Deit Tiny (W4/A4)", "Deit-Tiny-W4-A4", "deit-tiny-w4-a4"),
        ("modèle ü", "mod-le", "mod-le"),
        (".hidden", "hidden", "hidden"),
        ("8bit", "8bit", None),
        ("模型", None, None),
        ("x" * 47, "x" * 47, "x" * 47),
        ("x" * 48, "x" * 48, None),
    ],
)
def test_a_name_is_made_from_the_file(stem, path_name, dns_name):
    for rule, expected in ((PATH_NAME, path_name), (DNS_NAME, dns_name)):
        if expected is None:
            with pytest.raises(UsageError, match="Give it with --name"):
                rule.choose(None, stem)
        else:
            assert rule.choose(None, stem) == expected


@given(st.text())
def test_whatever_the_file_is_called_the_name_can_be_used(stem):
    try:
        name = DNS_NAME.choose(None, stem)
    except UsageError:
        return
    # RFC 1035's label, with the longest thing KServe appends.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", f"{name}-predictor-00001")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b", "A\n"])
def test_a_name_that_cannot_be_used_is_refused(model, tmp_path, name):
    for target in EVERY:
        with pytest.raises(UsageError, match="the model's name is"):
            package(model, tmp_path / "out", target, name=name)


# Whole or not at all


def test_a_folder_that_is_something_else_is_never_touched(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="is not a package"):
            package(model, out, Docker(), force=force)
    assert contents(out) == {"thesis.txt": b"years of work"}


def test_an_earlier_package_is_replaced_as_a_whole_when_told(model, tmp_path):
    package(model, tmp_path / "out", Docker())
    with pytest.raises(InputError, match="--force"):
        package(model, tmp_path / "out", KServe())
    package(model, tmp_path / "out", KServe(), force=True)
    assert "Dockerfile" not in contents(tmp_path / "out")
    assert "servingruntime.yaml" in contents(tmp_path / "out")


@pytest.mark.parametrize("other", ["notes.txt", "models/tiny/2/model.onnx"])
def test_a_package_with_other_files_in_it_is_not_replaced(model, tmp_path, other):
    out = tmp_path / "out"
    package(model, out, Docker())
    (out / other).parent.mkdir(exist_ok=True)
    (out / other).write_text("mine")
    before = contents(out)
    with pytest.raises(InputError, match=f"would be lost: {other}. Move"):
        package(model, out, Docker(), force=True)
    assert contents(out) == before


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": 1}'])
def test_a_folder_with_a_damaged_manifest_is_no_package(model, tmp_path, manifest):
    out = tmp_path / "out"
    package(model, out, Docker())
    (out / "fimaq-package.json").write_text(manifest)
    with pytest.raises(InputError, match="is not a package"):
        package(model, out, Docker(), force=True)


def test_a_write_that_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    package(model, tmp_path / "out", Docker())
    before = contents(tmp_path)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        package(model, tmp_path / "out", KServe(), force=True)
    assert contents(tmp_path) == before


def test_a_package_can_be_made_from_the_file_in_it(model, tmp_path):
    package(model, tmp_path / "out", Triton())
    package(tmp_path / "out" / "tiny" / "1" / "model.onnx", tmp_path / "out", Docker(), name="tiny", force=True)
    assert (tmp_path / "out" / "models" / "tiny" / "1" / "model.onnx").read_bytes() == model.read_bytes()


# Docker


def test_the_docker_context_builds_on_the_image_that_was_chosen(model, tmp_path):
    package(model, tmp_path / "out", Docker(image="registry.example/serve:7"), name="tiny")
    lines = (tmp_path / "out" / "Dockerfile").read_text().splitlines()
    assert "ARG BASE=registry.example/serve:7" in lines
    assert "FROM ${BASE}" in lines


def test_hadolint_finds_nothing_in_the_dockerfile(model, tmp_path):
    package(model, tmp_path / "out", Docker())
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, tmp_path / "out" / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("target", [KServe, Docker])
@pytest.mark.parametrize("image", ["", "-x", 'a"b', "a b", "a\nRUN evil"])
def test_an_image_that_is_none_is_refused(target, image):
    with pytest.raises(UsageError, match="--image is"):
        target(image=image)


# The command


def test_the_command_says_what_it_wrote(model, tmp_path):
    out = tmp_path / "out"
    ran = CliRunner().invoke(cli, ["package", str(model), "--target", "kserve", "-o", str(out), "--cpu", "2", "--json"])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    assert (result["package"], result["target"], result["name"]) == (str(out), "kserve", "tiny")
    predictor = yaml.safe_load((out / "inferenceservice.yaml").read_text())["spec"]["predictor"]
    assert predictor["model"]["resources"]["limits"]["cpu"] == "2"


def test_every_target_can_be_asked_for(model, tmp_path):
    for target in TARGETS:
        ran = CliRunner().invoke(cli, ["package", str(model), "--target", target, "-o", str(tmp_path / target)])
        assert ran.exit_code == 0, ran.output
        assert (tmp_path / target / "README.md").is_file()


def test_an_option_of_another_target_is_refused(model, tmp_path):
    typed = ["package", str(model), "--target", "docker", "-o", str(tmp_path / "out"), "--max-batch", "4"]
    ran = CliRunner().invoke(cli, typed)
    assert (ran.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "--max-batch is for --target triton; got --target docker" in ran.stderr


def test_without_the_servers_packages_it_says_what_to_install(model, tmp_path):
    script = "import sys; sys.modules['starlette'] = None; from fimaq.cli.main import main; main()"
    typed = ["package", str(model), "--target", "docker", "-o", str(tmp_path / "out")]
    ran = subprocess.run([sys.executable, "-c", script, *typed], capture_output=True, text=True)
    assert ran.returncode == 5
    assert "pip install '.[serve]'" in ran.stderr
