"""``gate update``: a new baseline only from a candidate that passed, whole, and with its reason."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fimaq.deploy.gate import GateConfig, run_gate
from fimaq.deploy.gate.config import DropConfig
from fimaq.deploy.gate.evidence import read_evidence
from fimaq.deploy.gate.update import update
from fimaq.toolchain import files
from fimaq.toolchain.errors import GateFailed, GateInconclusive, InputError, UsageError

GOOD, WORSE, BAD = (np.where(np.arange(1000) < wrong, 9, 0) for wrong in (0, 10, 100))


@pytest.fixture
def config(write, tmp_path):
    """A float baseline, and a release that is not there yet."""
    baselines = {"float": write("float", GOOD), "release": tmp_path / "baselines" / "release.json"}
    return GateConfig(baselines=baselines)


def make(candidate, config, **options):
    return update(candidate, config, **{"name": "release", "reason": "why", "force": False, "environ": {}, **options})


def test_the_first_release_is_judged_by_the_other_baselines(write, config):
    done = make(write("candidate", GOOD), config)
    assert (done["verdict"], done["replaces"], done["forced"]) == ("pass", None, False)
    release = config.baselines["release"]
    assert sorted(path.name for path in release.parent.iterdir()) == [
        "release.history.json",
        "release.json",
        "release.npz",
    ]
    assert read_evidence(release).summary.sha256 == "c" * 64


def test_the_baseline_has_sorted_keys_and_gates(write, config):
    make(write("candidate", GOOD), config)
    text = config.baselines["release"].read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    assert run_gate(write("next", GOOD), config).verdict == "pass"


def test_the_history_keeps_every_entry_and_its_reason(write, config):
    make(write("a", GOOD), config, reason="first")
    make(write("b", GOOD), config, reason=" second ")
    history = json.loads(config.baselines["release"].with_suffix(".history.json").read_text())
    assert [(entry["reason"], entry["sha256"][0], entry["replaces"]) for entry in history] == [
        ("first", "a", None),
        ("second", "b", "a" * 64),
    ]
    assert {"time", "verdict", "forced", "top1", "top5", "n", "model", "dataset"} <= set(history[1])


def test_a_candidate_that_does_not_pass_is_refused_and_nothing_is_written(write, config):
    for ranks, error in ((BAD, GateFailed), (WORSE, GateInconclusive)):
        with pytest.raises(error, match="is not made the baseline: top1 vs float: top-1 is"):
            make(write("candidate", ranks), config)
    assert not config.baselines["release"].parent.exists()


def test_a_candidate_worse_than_the_release_it_replaces_is_refused(write, config):
    config = GateConfig(baselines={"release": config.baselines["release"]})
    first = make(write("first", GOOD), config)
    assert first["verdict"] is None
    with pytest.raises(GateFailed, match="top1 vs release"):
        make(write("candidate", BAD), config)


def test_force_takes_it_and_the_history_says_so(write, config):
    done = make(write("candidate", BAD), config, force=True)
    assert (done["verdict"], done["forced"]) == ("fail", True)
    assert read_evidence(config.baselines["release"]).summary.top1 == 90.0


@pytest.mark.parametrize(
    ("value", "refused"), [("true", True), ("1", True), ("false", False), ("0", False), ("", False)]
)
def test_continuous_integration_changes_no_baseline_unless_forced(write, config, value, refused):
    candidate = write("candidate", GOOD)
    if refused:
        with pytest.raises(UsageError, match="the variable CI is set"):
            make(candidate, config, environ={"CI": value})
        assert not config.baselines["release"].exists()
    assert make(candidate, config, environ={"CI": value}, force=refused)["verdict"] == "pass"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "relaese"}, "no baseline 'relaese' to update; .* float, release"),
        ({"reason": " "}, "--reason is empty"),
    ],
)
def test_a_name_that_is_unknown_and_a_reason_that_is_empty_are_refused(write, config, options, message):
    with pytest.raises(UsageError, match=message):
        make(write("candidate", GOOD), config, **options)


def test_rules_that_do_not_fit_the_baselines_are_refused(write, config):
    with pytest.raises(UsageError, match="Did you mean 'release'"):
        make(write("candidate", GOOD), replace(config, top1=DropConfig({"float": 1.0, "relaese": 1.0})))


def test_another_baseline_that_is_missing_is_refused(write, config):
    config.baselines["float"].unlink()
    with pytest.raises(InputError, match=r"float\.json"):
        make(write("candidate", GOOD), config)


@pytest.mark.parametrize("text", ["{}", "[", "\xff"])
def test_a_history_that_is_none_is_refused_and_left_alone(write, config, text):
    release = config.baselines["release"]
    release.parent.mkdir()
    history = release.with_suffix(".history.json")
    history.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="is not the list"):
        make(write("candidate", GOOD), config)
    assert [path.name for path in release.parent.iterdir()] == ["release.history.json"]
    assert history.read_text(encoding="latin-1") == text


def test_a_disk_that_is_full_leaves_the_old_baseline(write, config, monkeypatch):
    make(write("a", GOOD), config)
    folder = config.baselines["release"].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        make(write("b", GOOD), config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
