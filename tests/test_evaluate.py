"""Evaluation: the counts, what is written down, the order of things, and what is refused."""

import hashlib
import io
import json
import math
import os
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fimaq.toolchain.data import ImageSet, open_dataset
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.evaluate import EvalResult, OrtPredictor, evaluate
from fimaq.toolchain.evaluate.metrics import hits, top_k, wilson_interval
from fimaq.toolchain.image_input import ImageInput
from fimaq.toolchain.preprocess import Preprocessing

PREPROCESSING = Preprocessing(8, 8, 1.0, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = [f"class {index}" for index in range(7)]
CLASSES = {"wnids": None, "names": NAMES}
KEYS = {
    *("model", "sha256", "bytes", "dataset", "preprocessing_sha256", "n", "top1", "top5", "top1_interval"),
    *("images_per_second", "provider", "environment"),
}
WEIGHTS = np.random.default_rng(5).standard_normal((3, 7)).astype(np.float32)


def onnx_file(path, batch="batch", metadata=None, classes=7, inputs=1, size=8, elem=TensorProto.FLOAT):
    """logits = mean over the pixels times WEIGHTS, as an ONNX file with this tool's metadata."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    image = [helper.make_tensor_value_info(f"image{i or ''}", elem, [batch, 3, size, size]) for i in range(inputs)]
    weights = numpy_helper.from_array(WEIGHTS[:, :classes].astype(np.float64 if elem == TensorProto.DOUBLE else "f4"))
    weights.name = "weights"
    logits = helper.make_tensor_value_info("logits", elem, [batch, classes])
    graph = helper.make_graph(nodes, "test", image, [logits], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is None:
        metadata = {
            "fimaq.format": "1",
            "fimaq.preprocessing": PREPROCESSING.to_json(),
            "fimaq.classes": json.dumps(CLASSES),
        }
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """23 images of random colours in class folders; returns the folder."""
    rng = np.random.default_rng(0)
    for index in range(23):
        path = tmp_path / "data" / NAMES[index % 7] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) // (1 + index % 3)).save(path)
    return tmp_path / "data"


@pytest.fixture
def predictor(tmp_path):
    return OrtPredictor(onnx_file(tmp_path / "m.onnx"), threads=1)


def expected_logits(images: ImageSet) -> np.ndarray:
    """The file's logits, computed apart from it in float64."""
    arrays = np.stack([PREPROCESSING.apply(images.load(index)) for index in range(len(images))])
    return arrays.astype(np.float64).mean(axis=(2, 3)) @ WEIGHTS.astype(np.float64)


class Fake:
    """A predictor whose logits are a function of the batch."""

    model, sha256, bytes, provider, environment = "fake", "0" * 64, 1, "cpu", {}
    preprocessing, classes = PREPROCESSING, CLASSES
    image = ImageInput(PREPROCESSING, "float")

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, batch):
        return self.logits(batch)


# Metrics


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(count, n, low, high):
    assert wilson_interval(count, n) == (pytest.approx(100 * low, abs=0.005), pytest.approx(100 * high, abs=0.005))


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (5, 10), (999, 1000), (40770, 50000)])
def test_wilson_interval_solves_its_equation(count, n):
    # The ends are the p0 with (p - p0)^2 = z^2 p0 (1 - p0) / n, that is the roots of a quadratic.
    z2 = 1.959963984540054**2
    p = count / n
    roots = np.sort(np.roots([1 + z2 / n, -2 * p - z2 / n, p * p]).real)
    assert wilson_interval(count, n) == (pytest.approx(100 * roots[0], abs=1e-6), pytest.approx(100 * roots[1]))
    low, high = wilson_interval(count, n)
    assert 0 <= low <= 100 * p <= high <= 100


def test_top_k_is_a_stable_sort_and_hits_count_by_brute_force():
    logits = np.random.default_rng(0).integers(0, 4, (50, 9)).astype(np.float32)  # many ties
    labels = np.random.default_rng(1).integers(0, 9, 50)
    classes, values = top_k(logits)
    rows = [sorted(range(9), key=lambda c: (-row[c], c))[:5] for row in logits.tolist()]
    assert classes.tolist() == rows
    assert values.tolist() == [[row[c] for c in best] for row, best in zip(logits.tolist(), rows, strict=True)]
    for k in (1, 5):
        assert hits(classes, labels, k) == sum(label in best[:k] for label, best in zip(labels, rows, strict=True))
    assert top_k(logits[:, :3])[0].shape == (50, 3)


# A whole evaluation


def test_result_against_an_independent_count(predictor, folder, tmp_path):
    images = open_dataset(folder, classes=predictor.classes)
    result = evaluate(predictor, images, batch_size=4, keep_logits=True)
    logits = expected_logits(images)
    # float32 against float64 sums of 64 values of order one.
    np.testing.assert_allclose(result.predictions.logits, logits, atol=1e-5)
    order = np.argsort(-logits, axis=1)
    right = sum(order[i, 0] == label for i, label in enumerate(images.labels))
    in_five = sum(label in order[i, :5] for i, label in enumerate(images.labels))
    assert 0 < right < in_five < 23
    assert result.top1 == 100 * right / 23
    assert result.top5 == 100 * in_five / 23
    assert result.top1_interval == wilson_interval(right, 23)
    assert result.predictions.correct.sum() == right
    np.testing.assert_array_equal(result.predictions.top5, order[:, :5])


def test_json_has_the_promised_keys(predictor, folder, tmp_path):
    images = open_dataset(folder, classes=predictor.classes)
    found = evaluate(predictor, images, batch_size=4).to_json()
    content = (tmp_path / "m.onnx").read_bytes()
    assert set(found) >= KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["model"] == str(tmp_path / "m.onnx")
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["bytes"] == len(content)
    assert found["dataset"] == {"id": images.id, "n": 23, "sample_ids_sha256": images.sample_ids_sha256}
    assert found["preprocessing_sha256"] == PREPROCESSING.sha256
    assert (found["n"], found["provider"], found["skipped"]) == (23, "cpu", [])
    assert "class name" in found["label_source"]
    assert found["environment"]["threads"] == 1
    assert {"numpy", "pillow"} <= set(found["environment"]["versions"])
    assert found["environment"]["cpu"]["name"]
    assert found["images_per_second"] == pytest.approx(23 / found["seconds"]["total"])
    assert 0 < found["seconds"]["predict"] <= found["seconds"]["total"]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (5, 3), (64, 8)])
def test_neither_batches_nor_workers_change_the_predictions(predictor, folder, batch_size, workers):
    images = open_dataset(folder, classes=predictor.classes)
    base = evaluate(predictor, images, batch_size=23, workers=1)
    other = evaluate(predictor, images, batch_size=batch_size, workers=workers)
    np.testing.assert_array_equal(other.predictions.sample_ids, images.sample_ids)
    np.testing.assert_array_equal(other.predictions.top5, base.predictions.top5)
    assert other.dataset == base.dataset


def test_order_holds_when_decoding_does_not_end_in_order():
    def read(index):
        time.sleep(0.02 if index % 4 == 0 else 0)
        return Image.new("RGB", (8, 8), (index * 10, 0, 0))

    images = ImageSet("slow", tuple(f"{i:02d}" for i in range(20)), tuple([0] * 20), "", read)
    reds = []

    def logits(batch):
        reds.extend(np.rint((batch[:, 0, 0, 0] * 0.5 + 0.5) * 25.5).astype(int).tolist())
        return np.zeros((len(batch), 7), np.float32)

    evaluate(Fake(logits), images, batch_size=3, workers=4)
    assert reds == list(range(20))


def test_decoding_runs_ahead_in_parallel_and_within_bounds():
    lock, loaded, scored, furthest, names = threading.Lock(), [0], [0], [0], set()

    def read(index):
        with lock:
            loaded[0] += 1
            names.add(threading.current_thread().name)
            furthest[0] = max(furthest[0], loaded[0] - scored[0])
        time.sleep(0.001)
        return Image.new("RGB", (8, 8))

    waited = []

    def logits(batch):
        before = loaded[0]
        time.sleep(0.02)
        waited.append(loaded[0] > before)
        scored[0] += len(batch)
        return np.zeros((len(batch), 7), np.float32)

    images = ImageSet("many", tuple(f"{i:03d}" for i in range(300)), tuple([0] * 300), "", read)
    evaluate(Fake(logits), images, batch_size=10, workers=3)
    assert any(waited)  # decoding went on while the model ran
    assert len(names) > 1
    assert furthest[0] <= 10 + 2 * 10 + 3  # the batch in the model and the window, not the whole set


def test_limit_is_what_is_described(predictor, folder):
    images = open_dataset(folder, classes=predictor.classes)
    result = evaluate(predictor, images, limit=7)
    assert (result.n, result.dataset.n) == (7, 7)
    assert result.dataset.id == images.take(7).id != images.id


def test_progress_counts_every_image(predictor, folder):
    seen = []

    class Listener:
        def task(self, name, total):
            seen.append(total)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, n=1, **info):
            seen.append(n)

    (folder / NAMES[0] / "00.png").write_bytes(b"damaged")
    images = open_dataset(folder, classes=predictor.classes)
    evaluate(predictor, images, batch_size=5, on_corrupt="skip", progress=Listener())
    assert seen[0] == 23 == sum(seen[1:])


# Damaged images


def test_a_damaged_image_stops_the_evaluation_by_name(predictor, folder):
    (folder / NAMES[2] / "02.png").write_bytes(b"damaged")
    images = open_dataset(folder, classes=predictor.classes)
    with pytest.raises(InputError, match=r"class 2/02\.png"):
        evaluate(predictor, images)


def test_skipped_images_are_listed_and_the_rest_is_scored_as_before(predictor, folder):
    before = evaluate(predictor, open_dataset(folder, classes=predictor.classes))
    (folder / NAMES[2] / "02.png").write_bytes(b"damaged")
    images = open_dataset(folder, classes=predictor.classes)
    result = evaluate(predictor, images, batch_size=4, on_corrupt="skip")
    assert result.skipped == ("class 2/02.png",)
    assert (result.n, result.dataset.n) == (22, 23)
    kept = before.predictions.sample_ids != "class 2/02.png"
    np.testing.assert_array_equal(result.predictions.sample_ids, before.predictions.sample_ids[kept])
    np.testing.assert_array_equal(result.predictions.top5, before.predictions.top5[kept])
    assert result.top1 == 100 * before.predictions.correct[kept].sum() / 22


def test_nothing_left_to_score_is_an_error(predictor, folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="none of the 23 images"):
        evaluate(predictor, open_dataset(folder, classes=predictor.classes), on_corrupt="skip")


def test_an_image_that_cannot_be_scaled_is_named(predictor, tmp_path):
    path = tmp_path / "data" / NAMES[0] / "thin.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (60000, 1)).resize((4000000, 1)).save(path)
    with pytest.raises(InputError, match=r"class 0/thin\.png.*4000000x1"):
        evaluate(predictor, open_dataset(tmp_path / "data", classes=predictor.classes))


# What cannot be scored


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_image(folder, value):
    def logits(batch):
        out = np.zeros((len(batch), 7), np.float32)
        out[1, 3] = value
        return out

    with pytest.raises(InputError, match=r"not finite for class 0/07\.png"):
        evaluate(Fake(logits), open_dataset(folder, classes=CLASSES))


def test_outputs_of_another_shape_are_refused(folder):
    images = open_dataset(folder, classes=CLASSES)
    with pytest.raises(InputError, match=r"wanted logits \[batch, classes\]"):
        evaluate(Fake(lambda batch: np.zeros((len(batch), 7, 1), np.float32)), images)
    with pytest.raises(InputError, match="label 6 and fake 5 classes"):
        evaluate(Fake(lambda batch: np.zeros((len(batch), 5), np.float32)), images)


def test_images_without_labels_cannot_be_scored(predictor, folder):
    images = open_dataset(folder, classes=predictor.classes)
    bare = ImageSet(images.source, images.sample_ids, None, "none", images.read)
    with pytest.raises(InputError, match="no labels to compare with"):
        evaluate(predictor, bare)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}, {"on_corrupt": "ignore"}, {"limit": 0}])
def test_options_that_cannot_be_meant(predictor, folder, options):
    with pytest.raises(UsageError):
        evaluate(predictor, open_dataset(folder, classes=predictor.classes), **options)


# ONNX files


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_with_a_fixed_batch_gives_the_same_predictions(predictor, folder, tmp_path, batch):
    images = open_dataset(folder, classes=predictor.classes)
    fixed = OrtPredictor(onnx_file(tmp_path / "fixed.onnx", batch=batch), threads=1)
    free = evaluate(predictor, images, batch_size=6, keep_logits=True)
    result = evaluate(fixed, images, batch_size=6, keep_logits=True)
    # The same sums in another order of rows.
    np.testing.assert_allclose(result.predictions.logits, free.predictions.logits, rtol=0, atol=1e-6)


METADATA = {"fimaq.preprocessing": PREPROCESSING.to_json(), "fimaq.classes": json.dumps(CLASSES)}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"does not carry fimaq\.preprocessing.*not written by this tool.*fimaq-tool export, or set that key"),
        ({**METADATA, "fimaq.format": "2"}, r"fimaq\.format '2'.*Upgrade"),
        ({**METADATA, "fimaq.preprocessing": "{}"}, "preprocessing"),
        ({**METADATA, "fimaq.classes": "[]"}, r"fimaq\.classes"),
        ({**METADATA, "fimaq.classes": "not json"}, r"fimaq\.classes"),
        ({**METADATA, "fimaq.classes": '{"names": ["a"]}'}, "names 1 classes and returns 7 logits"),
    ],
)
def test_metadata_that_is_missing_or_wrong_is_refused(tmp_path, metadata, message):
    with pytest.raises(InputError, match=message):
        OrtPredictor(onnx_file(tmp_path / "m.onnx", metadata=metadata))


def test_preprocessing_alone_is_enough_and_classes_are_then_numbers(tmp_path):
    metadata = {"fimaq.preprocessing": PREPROCESSING.to_json()}
    predictor = OrtPredictor(onnx_file(tmp_path / "m.onnx", metadata=metadata))
    assert predictor.classes == {"wnids": None, "names": list("0123456")}
    with pytest.raises(InputError, match=r"fimaq\.classes.*does not say how many"):
        OrtPredictor(free_classes(onnx_file(tmp_path / "free.onnx", metadata=metadata)))


def free_classes(path):
    """The same file with a number of classes that is known only when it runs."""
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "all"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(7, np.bool_), "kept"))
    model.graph.node.append(helper.make_node("Compress", ["all", "kept"], ["logits"], axis=1))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("change", [{"size": 9}, {"inputs": 2}, {"elem": TensorProto.DOUBLE}])
def test_a_file_that_takes_something_else_is_refused(tmp_path, change):
    with pytest.raises(InputError, match=r"its preprocessing makes one tensor\(float\) \[batch, 3, 8, 8\]"):
        OrtPredictor(onnx_file(tmp_path / "m.onnx", **change))


# RESULT.json and RESULT.npz


@pytest.fixture
def result(predictor, folder):
    return evaluate(predictor, open_dataset(folder, classes=predictor.classes), keep_logits=True)


def test_a_result_comes_back_as_it_was(result, tmp_path):
    result.save(tmp_path / "new" / "r.json")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["r.json", "r.npz"]
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == result.to_json()
    loaded = EvalResult.load(tmp_path / "new" / "r.json")
    assert loaded.to_json() == result.to_json()
    for name, array in result.predictions.arrays.items():
        np.testing.assert_array_equal(loaded.predictions.arrays[name], array)
    with np.load(tmp_path / "new" / "r.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"sample_ids", "labels", "top5", "top5_logits", "logits"}


def test_a_result_is_not_overwritten_unless_told(result, tmp_path):
    result.save(tmp_path / "r.json")
    with pytest.raises(InputError, match="--force"):
        result.save(tmp_path / "r.json")
    (tmp_path / "r.json").unlink()
    with pytest.raises(InputError, match=r"r\.npz exists"):
        result.save(tmp_path / "r.json")
    result.save(tmp_path / "r.json", force=True)
    assert EvalResult.load(tmp_path / "r.json").n == 23
    with pytest.raises(UsageError, match=r"\.json"):
        result.save(tmp_path / "r.npz")


def test_a_write_that_fails_leaves_nothing(result, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        result.save(tmp_path / "out" / "r.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_results_that_are_missing_damaged_or_mixed_up_are_refused(result, tmp_path):
    result.save(tmp_path / "r.json")
    for name in ("nothing.json", "bad.json", "half.json"):
        (tmp_path / "bad.json").write_text("{}")
        (tmp_path / "half.json").write_text((tmp_path / "r.json").read_text())
        with pytest.raises(InputError, match=name):
            EvalResult.load(tmp_path / name)
    (tmp_path / "half.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:200])
    with pytest.raises(InputError, match=r"half\.json"):
        EvalResult.load(tmp_path / "half.json")
    arrays = dict(result.predictions.arrays)
    arrays["top5"] = arrays["top5"][:, ::-1]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (tmp_path / "r.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="does not belong to"):
        EvalResult.load(tmp_path / "r.json")
