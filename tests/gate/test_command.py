"""``fimaq-tool gate`` as scripts and people meet it."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from fimaq.cli.main import cli
from fimaq.deploy.gate.config import TEMPLATE, load_config

GOOD, UNSURE, BAD = (np.where(np.arange(1000) < wrong, 9, 0) for wrong in (0, 10, 100))


@pytest.fixture
def folder(write, tmp_path, monkeypatch):
    """A folder to work in, with results of a float model and of three candidates."""
    for name, ranks in (("float", GOOD), ("good", GOOD), ("unsure", UNSURE), ("bad", BAD)):
        write(name, ranks)
    monkeypatch.chdir(tmp_path)
    for name in ("CI", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def invoke(*words, env=None):
    return CliRunner().invoke(cli, ["gate", *map(str, words)], env=env)


def judged(candidate, *words, env=None):
    result = invoke("--baseline", "float=float.json", "--candidate", f"{candidate}.json", *words, "--json", env=env)
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("candidate", "verdict", "code"), [("good", "pass", 0), ("bad", "fail", 1), ("unsure", "inconclusive", 3)]
)
def test_a_verdict_has_its_exit_code(folder, candidate, verdict, code):
    result = invoke("--baseline", "float=float.json", "--candidate", f"{candidate}.json", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["verdict"] == verdict
    assert "Error:" not in result.stderr
    assert ("the gate" in result.stderr) == (code != 0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--baseline", "float.json"], 2, "Missing option '--candidate'"),
        (["--candidate", "good.json"], 2, "gate rule top1 has no baseline to compare with"),
        (["--baseline", "float.json", "--candidate", "none.json"], 4, "none.json is not there"),
        (["--baseline", "float.json", "--baseline", "good.json", "--candidate", "bad.json"], 2, "called 'baseline'"),
        (
            ["--baseline", "float.json", "--candidate", "good.json", "--max-drop", "200"],
            2,
            "top1.max_drop (--max-drop)",
        ),
        (["--baseline", "float.json", "--candidate", "good.json", "--config", "none.toml"], 4, "gate init"),
        (["--baseline", "float.json", "--candidate", "good.json", "--junit", "float.json"], 4, "Give another --junit"),
        (["--baseline", "float.npz", "--candidate", "good.json"], 4, "float.npz holds predictions; wanted the result"),
        (["--candidate", "good.json", "init"], 2, "--candidate stands before init"),
        (["frob"], 2, "No such command 'frob'"),
    ],
)
def test_what_cannot_be_meant_or_used_is_refused(folder, words, code, message):
    result = invoke(*words)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_a_damaged_result_is_exit_4_and_no_verdict(folder):
    (folder / "good.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    result = invoke("--baseline", "float.json", "--candidate", "good.json", "--json")
    assert result.exit_code == 4
    assert "verdict" not in json.loads(result.stdout)


def test_an_option_beats_a_variable_beats_the_file_beats_the_default(folder):
    assert judged("good")["rules"][0]["margin"] == 1.0
    (folder / "gate.toml").write_text("policy = 'point'\n[top1]\nmax_drop = 2\n")
    assert judged("good")["rules"][0]["margin"] == 2.0
    assert judged("good")["policy"] == "point"
    variables = {"FIMAQ_MAX_DROP": "3", "FIMAQ_POLICY": "lenient"}
    assert judged("good", env=variables)["rules"][0]["margin"] == 3.0
    changed = judged("good", "--max-drop", "4", env=variables)
    assert (changed["rules"][0]["margin"], changed["policy"]) == (4.0, "lenient")


def test_several_baselines_are_judged_at_once(folder):
    words = ["--baseline", "float=float.json", "--baseline", "release=bad.json", "--candidate", "unsure.json", "--json"]
    rules = json.loads(invoke(*words).stdout)["rules"]
    assert [(rule["reference"], rule["verdict"]) for rule in rules] == [("float", "inconclusive"), ("release", "pass")]


def test_a_baseline_that_is_typed_joins_those_of_the_file(folder):
    (folder / "gate.toml").write_text("[baselines]\nfloat = 'none.json'\nrelease = 'bad.json'\n")
    rules = judged("unsure")["rules"]
    assert [(rule["reference"], rule["verdict"]) for rule in rules] == [("float", "inconclusive"), ("release", "pass")]


def test_the_table_says_what_was_found_and_why(folder):
    result = invoke("--baseline", "float=float.json", "--candidate", "bad.json")
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("fail  top1")]
    cells = [
        "fail",
        "top1 vs float",
        "100.00 %",
        "90.00 %",
        "-10.00 points",
        "-11.67 to -8.55 points",
        "≥ -1.00 points",
    ]
    assert re.split(r"\s{2,}", row) == cells
    assert "lies wholly beyond the allowed drop of 1 point" in result.stdout
    assert "against float: 100 images newly wrong, 0 newly right, exact McNemar p 1.6e-30" in result.stdout
    assert "accuracy gate: fail on 1,000 images, policy strict, 90 % intervals" in result.stdout
    assert "the gate failed: top1 vs float" in result.stderr


@pytest.mark.parametrize(
    ("candidate", "configured", "words"),
    [
        ("bad", False, "raise the limit (--max-drop) and say why"),
        ("bad", True, "raise the limit in gate.toml and say why"),
        ("unsure", False, "Raise the limit (--max-drop), or quantize"),
        ("good", False, "name one (release) in gate.toml (fimaq-tool gate init writes it) and run"),
        ("good", True, "To make this candidate the next baseline, run fimaq-tool gate update."),
    ],
)
def test_the_advice_is_for_who_has_a_gate_toml_or_none(folder, candidate, configured, words):
    if configured:
        (folder / "gate.toml").write_text("[baselines]\nrelease = 'float.json'\n")
    baseline = [] if configured else ["--baseline", "release=float.json"]
    said = invoke(*baseline, "--candidate", f"{candidate}.json").stdout.splitlines()[-1]
    assert said.startswith("what next: ")
    assert words in said


@pytest.mark.parametrize(
    ("candidate", "configured", "wanted"),
    [("good", True, "gate"), ("good", False, "serve"), ("unsure", False, "inspect"), ("bad", False, "inspect")],
)
def test_the_next_command_is_one_that_works(folder, monkeypatch, candidate, configured, wanted):
    """`gate update` needs a release in gate.toml; images are worth it where not many more are needed."""
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr("fimaq.cli.gate.next_command", lambda *words: said.append(words))
    if configured:
        (folder / "gate.toml").write_text("[baselines]\nrelease = 'float.json'\n")
    invoke(*([] if configured else ["--baseline", "float.json"]), "--candidate", f"{candidate}.json")
    assert [words[0] for words in said] == [wanted]
    if wanted == "gate":
        assert invoke(*map(str, said[0][1:])).exit_code == 0


def test_an_unpaired_comparison_is_said_loudly(folder):
    (folder / "float.npz").unlink()
    words = ["--baseline", "float.json", "--candidate", "good.json"]
    assert "warning: UNPAIRED against baseline" in invoke(*words).stdout
    refused = invoke(*words, "--require-paired")
    assert refused.exit_code == 4


def test_reports_are_written_whatever_the_verdict(folder):
    files = ["--junit", "a/j.xml", "--sarif", "s.sarif", "--markdown", "m.md"]
    assert invoke("--baseline", "float.json", "--candidate", "bad.json", *files).exit_code == 1
    assert "<failure" in (folder / "a" / "j.xml").read_text()
    assert json.loads((folder / "s.sarif").read_text())["version"] == "2.1.0"
    assert "fail" in (folder / "m.md").read_text().lower()
    again = invoke("--baseline", "float.json", "--candidate", "good.json", *files)
    assert again.exit_code == 4
    assert invoke("--baseline", "float.json", "--candidate", "good.json", *files, "--force").exit_code == 0
    assert "<failure" not in (folder / "a" / "j.xml").read_text()


def test_github_gets_its_outputs(folder):
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(folder / "out"), "GITHUB_STEP_SUMMARY": ""}
    result = invoke("--baseline", "float.json", "--candidate", "bad.json", "--json", env=variables)
    assert "::error" in result.stderr
    assert json.loads(result.stdout)["verdict"] == "fail"
    assert "verdict<<" in (folder / "out").read_text()


def test_init_writes_the_template_once(folder):
    result = invoke("init", "--json")
    assert json.loads(result.stdout) == {"config": "gate.toml"}
    assert (folder / "gate.toml").read_bytes() == TEMPLATE.read_bytes()
    assert load_config(folder / "gate.toml").top1.max_drop == 1.0
    assert invoke("init").exit_code == 4
    assert invoke("init", "--force").exit_code == 0


def test_from_init_to_a_second_release(folder):
    """The path of docs/gate.md: rules, float baseline, first release, a worse candidate, one that may pass."""
    invoke("init")
    rules = (folder / "gate.toml").read_text().replace("# release =", "release =")
    (folder / "gate.toml").write_text(rules)
    (folder / "baselines").mkdir()
    for suffix in (".json", ".npz"):
        (folder / f"float{suffix}").rename(folder / "baselines" / f"float{suffix}")
    missing = invoke("--candidate", "good.json")
    assert missing.exit_code == 4
    assert "release.json" in missing.stderr
    done = json.loads(invoke("update", "--candidate", "good.json", "--reason", "first release", "--json").stdout)
    assert (done["verdict"], done["name"], done["reason"]) == ("pass", "release", "first release")
    assert invoke("--candidate", "good.json").exit_code == 0
    refused = invoke("update", "--candidate", "bad.json", "--reason", "smaller")
    assert refused.exit_code == 1
    assert "is not made the baseline" in refused.stderr
    assert invoke("update", "--candidate", "unsure.json", "--reason", "smaller").exit_code == 3
    in_ci = invoke("update", "--candidate", "good.json", "--reason", "again", env={"CI": "true"})
    assert in_ci.exit_code == 2
    forced = invoke("update", "--candidate", "unsure.json", "--reason", "smaller", "--force")
    assert "top-1 99.00 % (gate: inconclusive)" in forced.stdout
    history = json.loads((folder / "baselines" / "release.history.json").read_text())
    assert [entry["reason"] for entry in history] == ["first release", "smaller"]
