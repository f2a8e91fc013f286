"""Results as ``fimaq-tool evaluate -o`` writes them, of models that never were."""

import hashlib

import numpy as np
import pytest

from fimaq.toolchain.evaluate import DatasetRef, EvalResult, Predictions
from fimaq.toolchain.evaluate.metrics import percent, wilson_interval

CLASSES = 1000
ABSENT = 9
"""A rank beyond the five predictions that are kept."""


def predictions(ranks, names=None, labels=None):
    """What a model predicted that has each label at its place in ``ranks`` (0 is right); ``ABSENT``: not among five."""
    ranks = np.asarray(ranks)
    labels = np.arange(len(ranks)) % 10 if labels is None else np.asarray(labels)
    top5 = (labels[:, None] + 1 + np.arange(5)) % CLASSES
    for place in range(5):
        top5[ranks == place, place] = labels[ranks == place]
    names = [f"{index:06d}.png" for index in range(len(ranks))] if names is None else names
    logits = np.tile(np.arange(5, 0, -1, dtype=np.float32), (len(ranks), 1))
    return Predictions(np.asarray(names, dtype=np.str_), labels.astype(np.int64), top5.astype(np.int32), logits)


def evaluated(found, sha256="a" * 64, **changes):
    """The result with those predictions; a data set of other images or labels has another id."""
    n, labels = len(found.labels), found.labels
    top1, top5 = (int((found.top5[:, :k] == labels[:, None]).any(axis=1).sum()) for k in (1, 5))
    names = "\n".join(found.sample_ids.tolist()).encode()
    values = {
        "model": f"{sha256[0]}.onnx",
        "sha256": sha256,
        "bytes": 1000,
        "dataset": DatasetRef(
            hashlib.sha256(names + labels.tobytes()).hexdigest(),
            n + len(changes.get("skipped", ())),
            hashlib.sha256(names).hexdigest(),
        ),
        "preprocessing_sha256": "b" * 64,
        "n": n,
        "top1": percent(top1, n),
        "top5": percent(top5, n),
        "top1_interval": wilson_interval(top1, n),
        "images_per_second": 10.0,
        "provider": "cpu",
        "environment": {},
        "skipped": (),
        "label_source": "folders",
        "batch_size": 32,
        "seconds": {"total": 1.0, "predict": 0.5},
        **changes,
    }
    return EvalResult(**values, predictions=found)


def pair(n, fixed, broken, both=0.75):
    """Ranks of a baseline and of a candidate that fixed and broke so many images of ``n``."""
    right = round(both * (n - fixed - broken))
    wrong = n - fixed - broken - right
    baseline = np.repeat([ABSENT, 0, 0, ABSENT], [fixed, broken, right, wrong])
    candidate = np.repeat([0, ABSENT, 0, ABSENT], [fixed, broken, right, wrong])
    return baseline, candidate


@pytest.fixture(name="pair")
def pair_fixture():
    """The function ``pair``."""
    return pair


@pytest.fixture
def write(tmp_path):
    """``write(name, ranks, ...)`` saves a result and gives the path of its json."""

    def save(name, ranks, *, names=None, labels=None, **changes):
        path = tmp_path / f"{name}.json"
        evaluated(predictions(ranks, names, labels), **{"sha256": name[0] * 64, **changes}).save(path, force=True)
        return path

    return save


@pytest.fixture
def write_pair(write):
    """``write_pair(n, fixed, broken)`` saves a baseline and a candidate and gives both paths."""

    def save(n, fixed, broken, **changes):
        baseline, candidate = pair(n, fixed, broken)
        return write("float", baseline), write("candidate", candidate, **changes)

    return save
