"""Results that do not hold are refused: whatever was lost, changed or mixed up, it is never a pass."""

import json
import math

import numpy as np
import pytest

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.evidence import read_evidence
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import DatasetRef
from fimaq.toolchain.evaluate.figures import SEAL, sealed

N = 400
RIGHT = np.zeros(N, dtype=int)


def gate(baseline, candidate, **config):
    return run_gate(candidate, GateConfig(baselines={"float": baseline}, **config))


def refused(baseline, candidate, message, **config):
    with pytest.raises(InputError, match=message) as error:
        gate(baseline, candidate, **config)
    assert "Evaluate" in str(error.value)


def edit(path, **changes):
    """Change keys of a RESULT.json and seal it again, as someone who knows the format could."""
    figures = json.loads(path.read_text())
    del figures[SEAL]
    path.write_text(json.dumps(sealed({**figures, **changes})))
    return path


def test_what_is_right_is_read(write):
    evidence = read_evidence(write("a", RIGHT))
    assert (evidence.summary.n, evidence.summary.top1, evidence.hits(1), evidence.hits(5)) == (N, 100.0, N, N)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1": 99.5}, "top1 is 99.5, wanted 100"),
        ({"top5": 100.0, "top1": 100.0, "n": N + 1}, f"n is {N + 1}, wanted {N}"),
        ({"top1_interval": [98.0, 100.0]}, "lower end of top1_interval is 98"),
        ({"top1_interval": [98.0]}, "top1_interval wants two numbers"),
        ({"dataset": {"id": "x", "n": N, "sample_ids_sha256": "y"}}, "dataset.sample_ids_sha256 is y"),
        ({"dataset": {"id": "x", "n": N}}, r"dataset\.sample_ids_sha256 is missing"),
        ({"skipped": ["lost.png"]}, f"dataset.n is {N}, wanted {N + 1}"),
        ({"skipped": ["000000.png"]}, f"the number of different images is {N}, wanted {N + 1}"),
        ({"skipped": [3]}, "skipped wants names"),
        ({"top1": math.nan}, "holds NaN"),
        ({"top5": math.inf}, "holds Infinity"),
        ({"top1": "100"}, "top1 is '100', wanted a number"),
        ({"bytes": 0}, "0 bytes"),
        ({"n": True}, "n is 'True', wanted an integer"),
        ({"top6": 1.0}, "top6 is not one of its keys"),
        ({"format_version": 2}, "format_version is 2, wanted 1"),
        ({"predictions_sha256": "0" * 64}, "does not belong to"),
    ],
)
def test_figures_that_do_not_follow_from_the_predictions_are_refused_though_sealed(write, changes, message):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    refused(baseline, edit(candidate, **changes), message)


def test_a_missing_metric_is_refused(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    figures = json.loads(candidate.read_text())
    del figures["top5"], figures[SEAL]
    candidate.write_text(json.dumps(sealed(figures)))
    refused(baseline, candidate, "top5 is missing")


def test_a_number_too_large_for_a_float_is_refused(write):
    baseline, candidate = write("float", RIGHT), edit(write("candidate", RIGHT), top5=math.inf)
    candidate.write_text(candidate.read_text().replace("Infinity", "1e999"))
    refused(baseline, candidate, "top5 is 'inf', wanted a number")


def test_an_edited_result_is_refused(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    candidate.write_text(candidate.read_text().replace('"bytes": 1000', '"bytes": 10'))
    refused(baseline, candidate, "was changed since it was written")


def test_a_result_may_be_written_in_another_order_and_layout(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    candidate.write_text(json.dumps(json.loads(candidate.read_text()), sort_keys=True, indent=4))
    assert gate(baseline, candidate).verdict == "pass"


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", "[" * 100_000, '{"format_version": 1}'])
def test_json_that_is_no_result_is_refused(write, text):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    candidate.write_text(text)
    refused(baseline, candidate, r"candidate\.json is not a result")


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_a_truncated_npz_is_refused(write, keep):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    arrays = candidate.with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes()[:keep])
    refused(baseline, candidate, r"candidate\.npz is not what")


def test_the_predictions_of_another_result_are_refused(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    other = write("other", np.where(np.arange(N) < 50, 1, 0))
    candidate.with_suffix(".npz").write_bytes(other.with_suffix(".npz").read_bytes())
    refused(baseline, candidate, "does not belong to")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("top5_logits", np.full((N, 5), np.nan, np.float32)),
        ("labels", np.zeros(N, np.float32)),
        ("labels", np.zeros(N - 1, np.int64)),
        ("top5", np.zeros((N, 0), np.int32)),
        ("top5", np.zeros((N, 3), np.int32)),
        ("sample_ids", np.array([object()] * N)),
        ("extra", np.zeros(N)),
    ],
)
def test_arrays_of_another_kind_are_refused(write, name, array):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    with np.load(candidate.with_suffix(".npz")) as archive:
        arrays = {**archive, name: array}
    np.savez(candidate.with_suffix(".npz"), **arrays)
    refused(baseline, candidate, r"candidate\.npz is not what")


def test_an_image_that_counts_twice_is_refused(write):
    names = ["a.png"] * N
    baseline, candidate = write("float", RIGHT, names=names), write("candidate", RIGHT, names=names)
    refused(baseline, candidate, "number of different images is 1")


def test_other_images_are_refused(write):
    names = [f"other-{index}.png" for index in range(N)]
    refused(write("float", RIGHT), write("candidate", RIGHT, names=names), "another data set")


def test_other_labels_are_refused_by_the_data_set_and_by_themselves(write):
    labels = np.arange(N)[::-1] % 10
    refused(write("float", RIGHT), write("candidate", RIGHT, labels=labels), "another data set")
    same = json.loads(write("float", RIGHT).read_text())["dataset"]
    forged = write("candidate", RIGHT, labels=labels, dataset=DatasetRef(**same))
    refused(write("float", RIGHT), forged, "other labels")


def test_another_order_is_refused_by_the_data_set_and_by_itself(write):
    names = [f"{index:06d}.png" for index in range(N)]
    refused(write("float", RIGHT), write("candidate", RIGHT, names=names[::-1]), "another data set")
    skipped = {"skipped": ("lost.png",), "dataset": DatasetRef("same", N + 1, "same")}
    baseline = write("float", RIGHT, labels=[0] * N, names=names, **skipped)
    candidate = write("candidate", RIGHT, labels=[0] * N, names=names[::-1], **skipped)
    refused(baseline, candidate, "another order of scored images")
    candidate = write("candidate", RIGHT, labels=[0] * N, names=["new.png", *names[1:]], **skipped)
    refused(baseline, candidate, "another list of scored images")


def test_another_preprocessing_is_refused(write):
    candidate = write("candidate", RIGHT, preprocessing_sha256="c" * 64)
    refused(write("float", RIGHT), candidate, r"another preprocessing \(cccccccccccc\.\.\., not bbbbbbbbbbbb")


def test_a_candidate_that_skipped_images_is_refused_unless_the_baseline_skipped_the_same(write):
    same = {"dataset": DatasetRef("same", N, "same")}
    names = [f"{index:06d}.png" for index in range(N)]
    everything = write("float", RIGHT)
    skipped = {"names": names[1:], "skipped": (names[0],)}
    candidate = write("candidate", RIGHT[1:], **skipped, dataset=read_evidence(everything).dataset)
    refused(everything, candidate, r"another list of skipped images \(1 image\(s\), not 0 image\(s\)\)")
    both = [write(name, RIGHT[1:], **skipped, **same) for name in ("float", "candidate")]
    report = gate(*both)
    assert report.verdict == "pass"
    assert "1 of 400 images could not be decoded" in report.warnings[0]


def test_a_baseline_without_predictions_is_compared_unpaired_and_said_loudly(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    paired = gate(baseline, candidate)
    baseline.with_suffix(".npz").unlink()
    unpaired = gate(baseline, candidate)
    assert unpaired.warnings[0].startswith("UNPAIRED against float")
    assert (unpaired.flips, unpaired.mcnemar_p) == (None, None)
    assert unpaired.rules[0].delta == paired.rules[0].delta
    assert unpaired.rules[0].interval != paired.rules[0].interval


def test_unpaired_can_be_forbidden_and_is_never_for_the_candidate(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    baseline.with_suffix(".npz").unlink()
    refused(baseline, candidate, r"float\.npz", require_paired=True)
    refused(candidate, baseline, r"float\.npz")


def test_figures_without_predictions_still_have_to_agree_with_each_other(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT)
    baseline.with_suffix(".npz").unlink()
    refused(edit(baseline, top1=99.0), candidate, "lower end of top1_interval")
    refused(edit(baseline, top1=99.9), candidate, "top1 is 99.9")
    refused(edit(baseline, top1=100.0, top5=50.0), candidate, "top-1 100.0, top-5 50.0")


def test_what_may_explain_a_difference_is_a_warning(write):
    baseline, candidate = write("float", RIGHT), write("candidate", RIGHT, sha256="f" * 64, provider="cuda")
    same, provider = gate(baseline, candidate).warnings
    assert "same file, sha256 ffffffffffff" in same
    assert "evaluated by cuda and float by cpu" in provider
