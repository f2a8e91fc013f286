"""Timing files against each other: the figures follow from what a clock said, whatever the machine did."""

import json
import time

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from fimaq.cli.main import cli
from fimaq.toolchain import bench as benching
from fimaq.toolchain.bench import Timing, bench
from fimaq.toolchain.errors import InputError


def model(path, shape=("batch", 3, 4, 4), dtype=TensorProto.FLOAT):
    image = helper.make_tensor_value_info("image", dtype, shape)
    logits = helper.make_tensor_value_info("logits", dtype, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", [image], [logits])
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return path


def test_a_ratio_is_the_median_of_ratios_within_rounds(tmp_path):
    path = model(tmp_path / "m.onnx")
    drifting = (10.0, 20.0, 40.0, 80.0, 400.0)  # the machine slows down; the second file stays twice as fast
    first = Timing(path, 4, drifting)
    row = Timing(path, 4, tuple(value / 2 for value in drifting)).to_json(first)
    assert (row["ratio"], row["ratio_quartiles"]) == (2.0, [2.0, 2.0])
    assert (row["median_ms"], row["quartiles_ms"]) == (20.0, [10.0, 40.0])
    assert row["images_per_second"] == 200.0
    assert first.to_json(first)["ratio"] == 1.0


def test_files_take_turns_and_warm_up_does_not_count(tmp_path, monkeypatch):
    calls = []

    class Session:
        def __init__(self, path, provider, threads):
            self.name = path.stem
            assert (provider, threads) == ("cpu", 3)

        def get_inputs(self):
            return [helper_input()]

    def helper_input():
        from types import SimpleNamespace

        return SimpleNamespace(name="image", type="tensor(float)", shape=["batch", 3, 4, 4])

    monkeypatch.setattr(benching, "open_session", Session)
    monkeypatch.setattr(benching, "run_session", lambda session, feed, name: calls.append((session.name, feed)))
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    files = [model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx")]
    result = bench(files, [2], threads=3, rounds=5)
    assert [name for name, _ in calls] == ["a", "b"] * (benching.WARM_UP + 5)
    assert {feed["image"].shape for _, feed in calls} == {(2, 3, 4, 4)}
    assert [row["median_ms"] for row in result["models"]] == [1e3, 1e3]
    assert (result["rounds"], result["hardware"]["threads"]) == (5, 3)


@pytest.mark.parametrize(
    ("element", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.UINT8, np.uint8), (TensorProto.FLOAT, None)]
)
def test_every_type_of_image_input_runs(tmp_path, element, dtype):
    (row,) = bench([model(tmp_path / "m.onnx", dtype=element)], [3], threads=1, rounds=2)["models"]
    assert row["batch_size"] == 3
    assert row["median_ms"] > 0


def test_what_cannot_be_timed_is_refused(tmp_path):
    fixed = model(tmp_path / "fixed.onnx", (4, 3, 4, 4))
    assert bench([fixed], [4], threads=1, rounds=2)["models"][0]["batch_size"] == 4
    with pytest.raises(InputError, match=r"fixed batch of 4 and was asked for 1. Give --batch-size 4"):
        bench([fixed], [1], threads=1, rounds=2)
    with pytest.raises(InputError, match=r"takes image tensor\(float\) .*wanted one batch of images of fixed size"):
        bench([model(tmp_path / "free.onnx", ("batch", 3, "h", "w"))], [1], threads=1, rounds=2)
    with pytest.raises(InputError, match="not there"):
        bench([tmp_path / "gone.onnx"], [1])


def test_the_command_prints_and_writes_the_same_object(tmp_path):
    first, second = model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx")
    out = tmp_path / "bench.json"
    words = ["bench", str(first), str(second), "--rounds", "2", "--threads", "1", "--batch-size", "1"]
    done = CliRunner().invoke(cli, [*words, "--batch-size", "2", "-o", str(out), "--json"])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert json.loads(out.read_text()) == result
    assert [(row["model"], row["batch_size"]) for row in result["models"]] == [
        (str(path), batch) for batch in (1, 2) for path in (first, second)
    ]
    refused = CliRunner().invoke(cli, [*words, "-o", str(out)])
    assert refused.exit_code == 4
    assert "exists" in refused.stderr
    assert "speed (quartiles)" in CliRunner().invoke(cli, words).stdout
