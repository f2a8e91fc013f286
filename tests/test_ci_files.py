"""The Action, the GitLab job and the example repository: linted, and their scripts run as their runners run them."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml

from fimaq.cli.main import cli
from fimaq.deploy.gate import load_config
from fimaq.deploy.gate.evidence import read_evidence

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "deploy" / "ci" / "action.yml"
GITLAB = ROOT / "deploy" / "ci" / "gitlab-ci.yml"
GATED = ROOT / "examples" / "gated-model"
WORKFLOW = GATED / ".github" / "workflows" / "accuracy.yml"
BIN = Path(sys.executable).parent

DEFINITION = yaml.safe_load(ACTION.read_text())
STEPS = {step["name"]: step for step in DEFINITION["runs"]["steps"]}


@pytest.mark.parametrize("path", [ACTION, WORKFLOW], ids=lambda path: path.name)
def test_zizmor_finds_nothing(path):
    command = [BIN / "zizmor", "--offline", "--no-config", "--persona", "pedantic", path]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("path", "schema"), [(ACTION, "github-actions"), (WORKFLOW, "github-workflows"), (GITLAB, "gitlab-ci")]
)
def test_files_follow_their_schemas(path, schema):
    command = [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", path]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_no_expression_is_part_of_a_script():
    assert [name for name, step in STEPS.items() if "${{" in step["run"]] == []


@pytest.fixture
def runner(tmp_path):
    """Run a step of the action as GitHub's runner does, in a copy of the example repository."""
    temp, repository = tmp_path / "temp", tmp_path / "repository"
    shutil.copytree(GATED, repository)
    for suffix in (".json", ".npz"):
        shutil.copyfile(GATED / f"baselines/release{suffix}", repository / f"candidate{suffix}")
    tool = temp / "fimaq-tool" / "bin" / "fimaq-tool"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m fimaq.cli.main "$@"\n')
    tool.chmod(0o755)

    def run(name, **given):
        step = STEPS[name]
        values = {key: field.get("default", "") for key, field in DEFINITION["inputs"].items()} | given
        env = {
            variable: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], expression)
            for variable, expression in step.get("env", {}).items()
        }
        files = {variable: str(temp / variable) for variable in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        github = {"GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(ACTION.parent), "RUNNER_TEMP": str(temp), **files}
        (temp / "script").write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", temp / "script"]
        return subprocess.run(
            command, cwd=repository, env={**os.environ, **github, **env}, capture_output=True, text=True
        )

    run.temp, run.repository, run.tool = temp, repository, tool
    return run


def test_the_action_installs_its_own_revision_and_the_lock_without_torch(runner, monkeypatch):
    """``python3`` and ``pip`` stand in for the real ones and print what they are asked for."""
    for program in (runner.tool.with_name("pip"), runner.temp / "python3"):
        program.write_text('#!/bin/sh\necho "$PWD:" "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(runner.temp), prepend=os.pathsep)
    assert runner("Install fimaq-tool").stdout.splitlines() == [
        f"{runner.repository}: -m venv --clear {runner.temp}/fimaq-tool",
        f"{ROOT}: install --quiet --requirement requirements-serve.lock",
        f"{ROOT}: install --quiet --no-deps .",
    ]
    assert not re.search("^torch", (ROOT / "requirements-serve.lock").read_text(), flags=re.MULTILINE)


def outputs(runner):
    """The step's outputs, of both forms: ``name=value`` and ``name<<delimiter``."""
    text = (runner.temp / "GITHUB_OUTPUT").read_text()
    found = dict(re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE))
    return found | {name: value for name, _, value in re.findall(r"^(\w+)<<(\w+)\n(.*?)\n\2$", text, re.M | re.S)}


def test_the_action_judges_and_reports(runner):
    ran = runner("Judge the result", candidate="candidate.json")
    assert ran.returncode == 0, ran.stderr
    found = outputs(runner)
    assert (found["verdict"], found["n"], found["delta"]) == ("pass", "797", "-2.3839")
    assert JUnitXml.fromfile(found["junit"]).tests == len(json.loads(found["report"])["rules"])
    assert json.loads(Path(found["sarif"]).read_text())["runs"][0]["results"] == []
    assert Path(found["markdown"]).read_text().strip() == (runner.temp / "GITHUB_STEP_SUMMARY").read_text().strip()


def test_every_output_of_the_action_is_one_the_step_gives(runner):
    runner("Judge the result", candidate="candidate.json")
    values = [output["value"] for output in DEFINITION["outputs"].values()]
    assert sorted(values) == sorted(f"${{{{ steps.gate.outputs.{name} }}}}" for name in outputs(runner))


def test_the_action_fails_with_the_gate_and_still_reports(runner):
    baselines = "\nfloat=baselines/float.json\nrelease=baselines/release.json\n"
    ran = runner("Judge the result", candidate="candidate.json", baselines=baselines, **{"max-drop": "0.5"})
    assert ran.returncode == 1
    assert "::error title=Accuracy gate%3A top1 vs float::" in ran.stderr
    found = outputs(runner)
    assert found["verdict"] == "fail"
    assert JUnitXml.fromfile(found["junit"]).failures == 1


def test_the_action_takes_other_rules(runner):
    rules = '[baselines]\nfloat = "baselines/float.json"\n[top1]\nmax_drop = 2.0\n'
    (runner.repository / "other.toml").write_text(rules)
    assert runner("Judge the result", candidate="candidate.json", config="other.toml").returncode == 3


PRINT_ARGUMENTS = '#!/bin/sh\nprintf "%s\\n" "$@"\n'
HOSTILE = """a b'"; touch pwned; $(touch pwned) `touch pwned` *"""


@pytest.mark.parametrize("name", ["candidate", "baselines", "config", "max-drop"])
def test_inputs_reach_the_gate_as_they_are(runner, name):
    runner.tool.write_text(PRINT_ARGUMENTS)
    ran = runner("Judge the result", **{"candidate": "candidate.json", name: HOSTILE})
    option = "--" + name.removesuffix("s")
    assert (option, HOSTILE) in itertools.pairwise(ran.stdout.splitlines())
    assert not list(runner.temp.parent.rglob("pwned"))


@pytest.mark.parametrize("name", ["candidate", "model", "data"])
def test_inputs_reach_the_evaluation_as_they_are(runner, name):
    runner.tool.write_text(PRINT_ARGUMENTS)
    given = {"candidate": "c.json", "model": "m.onnx", "data": "val", name: HOSTILE}
    ran = runner("Evaluate the model", **given)
    wanted = ["evaluate", given["model"], "--data", given["data"], "-o", given["candidate"]]
    assert ran.stdout.splitlines() == wanted
    assert not list(runner.temp.parent.rglob("pwned"))


def test_gitlab_keeps_the_reports_that_the_script_writes():
    job = yaml.safe_load(GITLAB.read_text())[".accuracy-gate"]
    (line,) = (line for line in job["script"] if " gate " in line)
    words = shlex.split(line)
    assert job["artifacts"]["reports"]["junit"] == words[words.index("--junit") + 1]
    assert job["artifacts"]["paths"] == [words[words.index("--markdown") + 1]]
    assert job["artifacts"]["when"] == "always"


@pytest.mark.parametrize(
    "line",
    [
        *yaml.safe_load(GITLAB.read_text())[".accuracy-gate"]["script"],
        *(line for line in (GATED / "candidate.sh").read_text().splitlines() if line.startswith("fimaq-tool")),
        *re.findall(r"^fimaq-tool .*$", (GATED / "README.md").read_text(), flags=re.MULTILINE),
        *re.findall(r"^fimaq-tool .*$", (ROOT / "docs" / "ci.md").read_text(), flags=re.MULTILINE),
    ],
)
def test_commands_parse(line):
    _, name, *words = shlex.split(line)
    with cli.make_context("fimaq-tool", [name, *words], resilient_parsing=False) as ctx:
        command = cli.get_command(ctx, name)
        with command.make_context(name, words, parent=ctx) as inner:
            if inner.invoked_subcommand:
                subcommand = command.get_command(inner, inner.invoked_subcommand)
                subcommand.make_context(inner.invoked_subcommand, words[1:], parent=inner).close()


def test_the_example_pins_this_version_and_uses_the_action_s_inputs():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (GATED / "requirements.txt").read_text() == f"fimaq-tool=={version}\n"
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    (step,) = (step for step in steps if "/deploy/ci@" in step.get("uses", ""))
    required = {name for name, field in DEFINITION["inputs"].items() if field.get("required")}
    assert required <= set(step["with"]) <= set(DEFINITION["inputs"])


def test_the_example_s_baselines_are_what_its_rules_name():
    config = load_config(GATED / "gate.toml")
    assert sorted(config.baselines) == ["float", "release"]
    top1 = {name: read_evidence(path).summary.top1 for name, path in config.baselines.items()}
    history = json.loads((GATED / "baselines" / "release.history.json").read_text())
    assert top1["release"] == history[-1]["top1"]
