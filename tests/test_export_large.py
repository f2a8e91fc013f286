"""Models whose weights do not fit one protobuf: two files that belong together. The limit is lowered for it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from small_runs import small_run

from fimaq.cli.main import cli
from fimaq.deploy.serve.loading import load
from fimaq.toolchain.bench import bench
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_float, export_run, model_files
from fimaq.toolchain.export.model_files import whole_model
from fimaq.toolchain.external import DATA
from fimaq.toolchain.inspection import inspect_onnx
from fimaq.toolchain.runtime import open_session

NOISE = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The float demo model as one file, and as two."""
    folder = tmp_path_factory.mktemp("pair")
    export_float("demo_vit", folder / "one.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "EXTERNAL_FROM", 1)
        result = export_float("demo_vit", folder / "two.onnx")
    assert result["bytes"] == sum(path.stat().st_size for path in folder.glob("two.onnx*"))
    return folder


def copy(folder: Path, to: Path) -> tuple[Path, Path]:
    to.mkdir(exist_ok=True)
    for path in folder.glob("two.onnx*"):
        shutil.copy(path, to)
    (data,) = to.glob("*.data")
    return to / "two.onnx", data


def test_two_files_compute_what_one_does_and_say_what_belongs_together(pair, tmp_path):
    path, data = copy(pair, tmp_path / "moved")
    whole, split = onnx.load(pair / "one.onnx"), onnx.load(path)  # reads both files
    assert path.stat().st_size < data.stat().st_size / 2
    said = json.loads({entry.key: entry.value for entry in split.metadata_props}[DATA])
    content = data.read_bytes()
    assert said == {"file": data.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert data.name == f"two.onnx.{said['sha256'][:8]}.data"
    for mine, theirs in zip(whole.graph.initializer, split.graph.initializer, strict=True):
        assert mine.name == theirs.name
        np.testing.assert_array_equal(numpy_helper.to_array(mine), numpy_helper.to_array(theirs))
    one, two = OrtPredictor(pair / "one.onnx"), OrtPredictor(path)
    np.testing.assert_array_equal(one(NOISE), two(NOISE))
    assert two.bytes == path.stat().st_size + len(content)
    np.testing.assert_array_equal(load(path, "cpu", 1)(NOISE), one(NOISE))  # as the server does
    assert inspect_onnx(path)["bytes"] == two.bytes
    assert bench([path], rounds=2)["models"][0]["bytes"] == two.bytes


def test_a_quantized_run_holds_its_codes_in_two_files(tmp_path_factory, tmp_path, monkeypatch):
    run = small_run(tmp_path_factory.mktemp("small"), "vit", 4, 4, symmetric=(False, False))
    monkeypatch.setattr(model_files, "EXTERNAL_FROM", 1)
    result = export_run(run, tmp_path / "m.onnx", images=8, image="uint8")
    assert result["parity"]["codes_equal"]
    assert result["layers"]["float"] == 0
    assert [path.name.count(".data") for path in sorted(tmp_path.iterdir())] == [0, 1]
    assert {layer["kernel"] for layer in inspect_onnx(tmp_path / "m.onnx")["layers"]} == {"integer"}
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer}
    assert "blocks.0.mlp.fc1.weight.codes" in names
    OrtPredictor(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "which is not in .*Copy both files together"),
        ("truncated", "was cut off or is another file's"),
        ("changed", "its SHA-256 is another"),
    ],
)
def test_weights_that_are_not_the_files_are_refused(pair, tmp_path, fault, message):
    path, data = copy(pair, tmp_path)
    if fault == "missing":
        data.unlink()
    elif fault == "truncated":
        data.write_bytes(data.read_bytes()[:-5000])
    else:
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content)
    for reader in (OrtPredictor, lambda path: load(path, "cpu", 1)):
        with pytest.raises(InputError, match=message):
            reader(path)
    if fault != "changed":
        answer = CliRunner().invoke(cli, ["inspect", str(path)])
        assert answer.exit_code == 4
        assert "Copy both files" in answer.stderr


def model(number: float) -> ir.Model:
    """``logits = image + w`` with 4 kB of weights."""
    w = numpy_helper.from_array(np.full(1024, number, np.float32), "w")
    ends = [helper.make_tensor_value_info(name, 1, [1024]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Add", ["image", "w"], ["logits"])], "g", ends[:1], ends[1:], [w])
    return ir.serde.deserialize_model(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    )


def replaced(out: Path, number: float) -> None:
    with whole_model(out) as files:
        files.save(model(number))


def computed(out: Path) -> float:
    return float(open_session(out).run(None, {"image": np.zeros(1024, np.float32)})[0][0])


def test_a_new_pair_takes_the_place_of_an_old_one_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "EXTERNAL_FROM", 1)
    out = tmp_path / "m.onnx"
    replaced(out, 1.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = Path.replace

    def cut_off(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            replaced(out, 2.0)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert computed(out) == 1.0  # the old pair still holds

    replaced(out, 2.0)
    (data,) = tmp_path.glob("*.data")
    assert data.name not in before
    assert len(list(tmp_path.iterdir())) == 2
    assert computed(out) == 2.0
    monkeypatch.setattr(model_files, "EXTERNAL_FROM", 2**20)
    replaced(out, 3.0)
    assert list(tmp_path.iterdir()) == [out]
    assert computed(out) == 3.0


def test_an_error_of_what_is_checked_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), whole_model(tmp_path / "m.onnx"):
        (tmp_path / "nothing").read_bytes()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        replaced(tmp_path / "file" / "m.onnx", 1.0)
