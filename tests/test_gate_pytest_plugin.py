"""The pytest plugin, in test suites of its own."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fimaq.toolchain.evaluate import DatasetRef, EvalResult, Predictions
from fimaq.toolchain.evaluate.metrics import hits, percent, wilson_interval

pytest_plugins = ["pytester"]

N = 2000


def write_result(path, wrong):
    """A result of 10 classes on 2,000 images, of which the first ``wrong`` are answered wrongly."""
    labels = np.arange(N, dtype=np.int64) % 10
    top5 = ((labels[:, None] + np.arange(5)) % 10).astype(np.int32)
    top5[:wrong] = np.roll(top5[:wrong], 1, axis=1)
    names = np.array([f"{index:04d}.png" for index in range(N)])
    right = hits(top5, labels, 1)
    EvalResult(
        model=f"{path.stem}.onnx",
        sha256=hashlib.sha256(path.stem.encode()).hexdigest(),
        bytes=1000,
        dataset=DatasetRef("digits", N, hashlib.sha256("\n".join(names).encode()).hexdigest()),
        preprocessing_sha256="0" * 64,
        n=N,
        top1=percent(right, N),
        top5=percent(hits(top5, labels, 5), N),
        top1_interval=wilson_interval(right, N),
        images_per_second=1.0,
        provider="cpu",
        environment={},
        skipped=(),
        label_source="folders",
        batch_size=32,
        seconds={"total": 1.0, "predict": 1.0},
        predictions=Predictions(names, labels, top5, np.zeros_like(top5, dtype=np.float32)),
    ).save(path)


@pytest.fixture
def project(pytester):
    """A project with the results of a float model, and of a good, a bad and a doubtful candidate."""
    for name, wrong in (("float", 400), ("good", 401), ("bad", 480), ("doubtful", 420)):
        write_result(pytester.path / f"{name}.json", wrong)
    return pytester


def run(project, call, *options):
    project.makepyfile(f"def test_accuracy(accuracy_gate):\n    {call}\n")
    return project.runpytest_inprocess("-rs", *options)


GATE_TOML = '[baselines]\nfloat = "float.json"\n[top1]\nmax_drop = 1.0\n'
AGAINST_FLOAT = "baselines={'float': 'float.json'}"


def test_a_good_candidate_passes_and_its_report_is_returned(project):
    call = f"assert accuracy_gate('good.json', {AGAINST_FLOAT}).rules[0].delta == -0.05"
    run(project, call).assert_outcomes(passed=1)


def test_a_bad_candidate_fails_with_the_table_and_no_traceback(project):
    result = run(project, f"accuracy_gate('bad.json', {AGAINST_FLOAT})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["accuracy gate: fail on 2,000 images*", "*fail*top1 vs float*80.00 %*76.00 %*-4.00 points*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_an_inconclusive_candidate_fails(project):
    result = run(project, f"accuracy_gate('doubtful.json', {AGAINST_FLOAT})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["accuracy gate: inconclusive on 2,000 images*"])


def test_an_inconclusive_candidate_is_skipped_on_request_and_says_so(project):
    result = run(project, f"accuracy_gate('doubtful.json', {AGAINST_FLOAT}, on_inconclusive='skip')")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*accuracy gate: inconclusive.*"])


def test_a_bad_candidate_fails_whatever_becomes_of_inconclusive_ones(project):
    run(project, f"accuracy_gate('bad.json', {AGAINST_FLOAT}, on_inconclusive='skip')").assert_outcomes(failed=1)


def test_rules_and_baselines_come_from_gate_toml(project):
    (project.path / "gate.toml").write_text(GATE_TOML + "[floor]\ntop1 = 85.0\n")
    result = run(project, "accuracy_gate('good.json', config='gate.toml')")
    result.stdout.fnmatch_lines(["*fail*min_top1*79.95 %*≥ 85.00 %*"])


def test_max_drop_overrides_gate_toml(project):
    (project.path / "gate.toml").write_text(GATE_TOML)
    run(project, "accuracy_gate('bad.json', config='gate.toml', max_drop=9.0)").assert_outcomes(passed=1)


def test_what_a_person_must_see_is_a_warning(project):
    (project.path / "float.npz").unlink()
    result = run(project, f"accuracy_gate('good.json', {AGAINST_FLOAT}, max_drop=9.0)", "-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*UserWarning: accuracy gate: UNPAIRED against float*"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (f"accuracy_gate('missing.json', {AGAINST_FLOAT})", "*accuracy gate: *missing.json*"),
        ("accuracy_gate('good.json')", "*accuracy gate: *no baseline*"),
        ("accuracy_gate('good.json', config='none.toml')", "*accuracy gate: none.toml cannot be read*"),
    ],
)
def test_what_cannot_be_judged_fails(project, call, message):
    result = run(project, call)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*another exception*")


def test_a_project_that_does_not_use_it_loads_nothing_but_the_plugin():
    script = "import sys, fimaq.deploy.ci.pytest_plugin; print(*(name for name in sys.modules if 'fimaq.' in name))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert ran.stdout.split() == ["fimaq.deploy", "fimaq.deploy.ci", "fimaq.deploy.ci.pytest_plugin"]


def test_a_project_that_does_not_use_it_runs_as_without_it(pytester):
    pytester.makepyfile("def test_one(): pass\ndef test_two(): assert 0")
    outcomes = [
        [line for line in pytester.runpytest_inprocess("-v", *options).outlines if "test_" in line]
        for options in ((), ("-p", "no:fimaq"))
    ]
    assert outcomes[0] == outcomes[1]
