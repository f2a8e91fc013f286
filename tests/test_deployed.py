"""benchmarks/deployed.py on the bundled ViT: what is built, what a row says, and what is printed of rows."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.data.demo_set import materialise
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor, evaluate

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
FILES = ("float", "static", "static-products", "w8a8")
QUICK = 'base = "fast-w8a8"\n[calibrate]\ncandidates = 8\nrounds = 1\n'


@pytest.fixture(scope="module")
def deployed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import deployed

        yield deployed


@pytest.fixture(scope="module")
def making(deployed):
    from contestants import files

    return files


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return materialise(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="module")
def source(making, digits):
    return making.Source("demo_vit", digits.train, samples=8)


@pytest.fixture(scope="module")
def folder(making, source, tmp_path_factory):
    built = tmp_path_factory.mktemp("built")
    recipe = built / "quick.toml"
    recipe.write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(making.RECIPES, "w8a8", (str(recipe), {"iters": 0}))
        making.build(built, source, FILES)
    return built


@pytest.fixture
def call(deployed, monkeypatch, tmp_path, capsys):
    """Runs a command; ``rows`` are the lines of its results file."""
    results = tmp_path / "results.jsonl"

    def run(*words):
        takes_results = words[0] not in ("build", "profile")
        arguments = [*map(str, words), *(["--results", str(results)] if takes_results else [])]
        monkeypatch.setattr(sys, "argv", ["deployed.py", *arguments])
        deployed.main()
        return capsys.readouterr().out

    run.results = results
    run.rows = lambda: [json.loads(line) for line in results.read_text().splitlines()]
    return run


def test_a_build_goes_on_with_what_is_missing(making, source, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.onnx")}
    assert {path.stem for path in before} == set(FILES)
    gone = folder / "static.onnx"
    content = gone.read_bytes()
    gone.unlink()
    making.build(folder, source, FILES)
    assert gone.read_bytes() == content
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == {gone}
    with pytest.raises(InputError, match=r"has files made of .*'samples': '8'.* wanted .*'samples': '9'"):
        making.build(folder, making.Source("demo_vit", source.calib, samples=9), FILES)


def test_each_file_is_of_its_run(making, source, tmp_path, monkeypatch):
    made = []

    def quantize(request):
        made.append((request.out.name, request.recipe.weights.bits, request.recipe.activations.bits))
        request.out.mkdir()
        (request.out / "manifest.json").touch()

    def export_run(run, out, *, target, allow_float):
        made.append((run.name, out.stem, target, allow_float))

    monkeypatch.setattr(making, "quantize", quantize)
    monkeypatch.setattr(making, "export_run", export_run)
    making.build(tmp_path, source, ["w4a8", "openvino-w4a4", "w4a4", "paper-w4a4"])
    assert made == [
        ("w4a8", 4, 8),
        ("w4a8", "w4a8", "ort-cpu", False),
        ("w4a4", 4, 4),
        ("w4a4", "openvino-w4a4", "openvino", False),
        ("w4a4", "w4a4", "ort-cpu", False),
        ("paper-w4a4", 4, 4),
        ("paper-w4a4", "paper-w4a4", "ort-cpu", True),
    ]


@pytest.mark.parametrize(("name", "adds"), [("static", True), ("static-products", False)])
def test_the_other_tool_is_used_as_its_documentation_advises(folder, name, adds):
    """QDQ, uint8 activations, int8 weights with a scale each channel; read from the file alone."""
    graph = onnx.load(folder / f"{name}.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        for read in node.input[:2]:
            dequantize = made_by[read]
            assert dequantize.op_type == "DequantizeLinear"
            codes, scale = dequantize.input[:2]
            if codes in constants:
                weights += 1
                assert constants[codes].data_type == TensorProto.INT8
                assert numpy_helper.to_array(constants[scale]).size in constants[codes].dims
                assert numpy_helper.to_array(constants[scale]).size > 1
            else:
                assert constants[dequantize.input[2]].data_type == TensorProto.UINT8
    assert weights > 30
    read_by_adds = [read for node in graph.node if node.op_type == "Add" for read in node.input if read in made_by]
    assert all(made_by[read].op_type == "DequantizeLinear" for read in read_by_adds) == adds


def test_calibration_images_are_those_of_the_runs(making, source, folder):
    names = json.loads((folder / "w8a8" / "manifest.json").read_text())["calibration"]["sample_ids"]
    form, images = OrtPredictor(folder / "float.onnx").image, open_dataset(str(source.calib))
    reader, seen = making.Images(folder / "float.onnx", source), []
    while (batch := reader.get_next()) is not None:
        seen.append(batch["image"])
    wanted = [form.apply(images.load(images.sample_ids.index(name)))[None] for name in names]
    np.testing.assert_array_equal(seen, wanted)


def test_predictions_are_those_of_evaluate(call, folder, digits):
    call("agree", folder, "--data", digits.val, "--images", 60, "--only", "float", "w8a8", "static")
    rows = {row["key"]: row for row in call.rows()}
    found = {}
    for name in ("float", "w8a8", "static"):
        predictor = OrtPredictor(folder / f"{name}.onnx", threads=1)
        images = open_dataset(str(digits.val), classes=predictor.classes).take(60)
        found[name] = evaluate(predictor, images, batch_size=7, workers=1)
        row = rows[f"{name}/ONNX Runtime"]
        same = found[name].predictions.top5[:, 0] == found["float"].predictions.top5[:, 0]
        assert (row["n"], row["top1"]) == (60, found[name].to_json()["top1"])
        assert row["agreement"] == 100 * same.mean()
    assert rows["float/ONNX Runtime"]["agreement"] == rows["float/OpenVINO/f32"]["agreement"] == 100
    assert rows["float/OpenVINO/f32"]["where"] == "OpenVINO f32"


def test_contestants_take_turns_and_ratios_are_within_rounds(deployed, call, folder, monkeypatch):
    now, order = [0.0], []

    def contestant(title, key, seconds):
        def predict(images):
            order.append((key, len(images)))
            now[0] += seconds * (1 + len(order) // 4)  # the machine slows down, for all alike

        row = {"key": key, "title": title, "where": "ONNX Runtime", "sha256": key, "bytes": 1_000_000}
        return SimpleNamespace(predict=predict, to_json=lambda: row)

    slow, fast = contestant("float", "float/ONNX Runtime", 8e-3), contestant("W8/A8", "w8a8/ONNX Runtime", 2e-3)
    monkeypatch.setattr(deployed, "opened", lambda contestants, where, threads: [slow, fast])
    monkeypatch.setitem(deployed.CLOCKS, "processor", lambda: now[0])
    call("measure", folder, "--batches", 2, "--rounds", 6, "--clock", "processor")
    first, second = call.rows()
    assert order == [("float/ONNX Runtime", 2), ("w8a8/ONNX Runtime", 2)] * 9
    assert (first["ratio"], first["ratio_quartiles"]) == (1.0, [1.0, 1.0])
    assert second["median_ms"] < first["median_ms"]
    assert second["ratio"] == pytest.approx(4.0, rel=0.35)
    assert second["images_per_second"] == pytest.approx(2e3 / second["median_ms"])
    assert (second["clock"], second["batch_size"], second["rounds"]) == ("processor", 2, 6)


def test_a_real_measurement_has_a_row_for_each_and_a_table_of_them(call, folder, tmp_path):
    call("measure", folder, "--batches", 1, 2, "--rounds", 2, "--only", "float", "w8a8")
    rows = call.rows()
    keys = ["float/ONNX Runtime", "w8a8/ONNX Runtime", "float/OpenVINO/f32", "float/OpenVINO"]
    assert [(row["key"], row["batch_size"]) for row in rows] == [(key, batch) for batch in (1, 2) for key in keys]
    assert all(row["median_ms"] > 0 for row in rows)
    assert rows[1]["bytes"] == (folder / "w8a8.onnx").stat().st_size
    assert str(folder) not in call.results.read_text()
    printed = call("table")
    assert [line.split("|")[2].strip() for line in printed.splitlines()[2:]] == [row["where"] for row in rows[:4]]
    call("plot", "--out", tmp_path / "plot.svg")
    drawing = ElementTree.parse(tmp_path / "plot.svg")
    words = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"float, ONNX Runtime", "W8/A8, ONNX Runtime", "float, OpenVINO f32"} <= set(words)
    shapes = [circle.get("class") for circle in drawing.iter("{http://www.w3.org/2000/svg}circle")]
    assert shapes == ["open", "filled"] * len(keys)


def row(key, ratio, measurement="now", batch=1, sha256="a"):
    own = {"kind": "speed", "key": key, "title": key.split("/")[0], "where": "ONNX Runtime", "sha256": sha256}
    times = {"median_ms": 10 / ratio, "ratio": ratio, "ratio_quartiles": [ratio - 0.1, ratio + 0.1]}
    return own | times | {"bytes": 2_500_000, "batch_size": batch, "measurement": measurement}


def test_a_table_is_of_the_newest_measurement(call):
    seen = {"kind": "agreement", "key": "w8a8/ONNX Runtime", "sha256": "a", "top1": 81.5, "agreement": 98.25}
    lines = [
        row("float/ONNX Runtime", 1.0, "before"),
        row("w4a4/ONNX Runtime", 9.0, "before"),
        row("w8a8/ONNX Runtime", 9.0, "before"),
        seen | {"top1": 1.0},
        seen,
        row("w8a8/ONNX Runtime", 2.5),  # out of order: the table has the order of the contestants
        row("float/ONNX Runtime", 1.0),
    ]
    call.results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in call("table").splitlines()[2:]]
    assert body == [
        ["float", "ONNX Runtime", "2.50", "", "", "10.0", "1.00"],
        ["w8a8", "ONNX Runtime", "2.50", "81.50", "98.2", "4.0", "2.50 (2.40 to 2.60)"],
    ]
    with call.results.open("a") as file:
        file.write(json.dumps(seen | {"sha256": "b"}) + "\n")
    with pytest.raises(InputError, match="w8a8/ONNX Runtime is not the one that predicted"):
        call("table")


def test_a_profile_names_the_kernels(call, folder):
    printed = call("profile", folder, "--files", "float", "w8a8", "--batches", 2, "--rounds", 2)
    cells = {line.split("|")[1].strip(): line.split("|")[2:4] for line in printed.splitlines()}
    on_floats, on_integers = (cell.strip() for cell in cells["MatMulIntegerToFloat"])
    assert on_floats == "0.0 (0 %)"
    assert float(on_integers.split()[0]) > 0
    shares = [sum(int(pair[i].split("(")[1].split()[0]) for pair in list(cells.values())[2:]) for i in (0, 1)]
    assert all(abs(share - 100) <= 8 for share in shares)  # each is rounded


def test_what_is_missing_is_said_with_the_next_step(deployed, call, tmp_path):
    command = [sys.executable, BENCHMARKS / "deployed.py", "measure", tmp_path, "--results", call.results]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: ")
    assert "deployed.py build" in done.stderr
    assert not call.results.exists()
    with pytest.raises(InputError, match=r"holds no measurement\. .*deployed\.py measure"):
        call("table")
