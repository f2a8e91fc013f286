"""When a file counts as agreeing with the torch model, and how it is written."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fimaq.toolchain import files
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.export.checks.check import check_float_parity
from fimaq.toolchain.export.checks.parity import SIGNIFICANCE, Agreement, snr_db
from fimaq.toolchain.export.errors import ExportError


def agreement(both: int, only_file: int, only_floor: int, neither: int) -> Agreement:
    counts = (both, only_file, only_floor, neither)
    agrees = np.repeat([True, True, False, False], counts)
    return Agreement(agrees, np.repeat([True, False, True, False], counts), 0.0, 0.0)


def test_percentages_and_the_exact_sign_test():
    found = agreement(50, 3, 7, 4)
    assert found.top1_agreement == pytest.approx(100 * 53 / 64)
    assert found.noise_floor == pytest.approx(100 * 57 / 64)
    assert found.p_value == pytest.approx(176 / 1024)  # P(X >= 7), X ~ Bin(10, 1/2)
    assert agreement(64, 0, 0, 0).p_value == 1.0
    assert agreement(0, 0, 10, 0).p_value == 2**-10


def test_a_sound_file_is_refused_once_in_a_thousand_and_a_broken_one_always():
    rng = np.random.default_rng(0)
    floor, sound = rng.random((2, 4000, 64)) < 0.835  # two independent draws at the measured W4/A4 floor
    refused = [Agreement(f, s, 0, 0).p_value < SIGNIFICANCE for f, s in zip(floor, sound, strict=True)]
    assert np.mean(refused) <= 2 * SIGNIFICANCE
    broken = rng.random((1000, 64)) < 0.4
    missed = [Agreement(b, f, 0, 0).p_value >= SIGNIFICANCE for b, f in zip(broken, floor, strict=False)]
    assert np.mean(missed) <= 0.05


def write_linear(path: Path, weight: np.ndarray) -> None:
    """An ONNX file that multiplies a flat image with the weight."""
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "linear", [image], [logits], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_a_float_file_must_compute_the_logits_and_not_only_their_order(tmp_path):
    rng = np.random.default_rng(0)
    weight, images = rng.standard_normal((12, 5), np.float32), rng.standard_normal((8, 3, 2, 2), np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False))
    model[1].weight.data = torch.from_numpy(weight.T.copy())
    write_linear(tmp_path / "right.onnx", weight)
    assert check_float_parity(tmp_path / "right.onnx", model, images).top1_agreement == 100
    write_linear(tmp_path / "off.onnx", weight * 1.01)
    with pytest.raises(ExportError, match="signal to noise 40 dB; wanted"):
        check_float_parity(tmp_path / "off.onnx", model, images)


def test_snr():
    x = np.ones((2, 5), np.float32)
    assert snr_db(x, x) == 200.0
    assert snr_db(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)


def test_files_appear_whole_or_not_at_all(tmp_path):
    out = tmp_path / "model.onnx"
    with pytest.raises(ZeroDivisionError), files.whole_file(out, b"new"):
        assert 1 / (out.exists() - 0)
    assert list(tmp_path.iterdir()) == []
    with files.whole_file(out, b"new") as temporary:
        assert temporary.read_bytes() == b"new"
        assert not out.exists()
    assert out.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [out]


def test_outputs_that_cannot_be_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder; wanted the name of a file"):
        files.check_free(tmp_path, force=True)
    for out, reason in (("/", "no name of its own"), ("n" * 252, "File name too long"), ("n" * 300, "too long")):
        with pytest.raises(InputError, match=reason):
            files.check_free(tmp_path / out, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), files.whole_file(tmp_path / "file" / "model.onnx", b""):
        pass
