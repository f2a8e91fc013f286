"""gate.toml: read as it is meant, refused by name where it cannot be meant."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from fimaq.deploy.gate import GateConfig, load_config
from fimaq.deploy.gate.config import TEMPLATE, DropConfig, FloorConfig, LatencyConfig, SizeConfig
from fimaq.deploy.gate.rules import RULES
from fimaq.toolchain.errors import InputError, UsageError

BASELINES = {"float": Path("f.json"), "release": Path("r.json")}


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "gate.toml"
        path.write_text(text)
        return path

    return write


def test_without_a_rule_top1_may_drop_by_one_point():
    config = GateConfig()
    assert config.top1 == DropConfig(1.0)
    assert (config.policy, config.confidence) == ("strict", 0.9)
    assert GateConfig(floor=FloorConfig(top1=70)).top1 is None


def test_every_rule_is_a_table_and_every_table_a_rule():
    assert set(RULES) == {field.name for field in fields(GateConfig)} - {
        "policy",
        "confidence",
        "require_paired",
        "baselines",
    }


def test_paths_are_relative_to_the_file(toml):
    path = toml('[baselines]\nfloat = "a/f.json"\n[latency]\nmax_ratio = 1\nevidence = ["bench.json"]\n')
    config = load_config(path)
    assert config.baselines == {"float": path.parent / "a" / "f.json"}
    assert config.latency == LatencyConfig(1.0, (path.parent / "bench.json",))


def test_a_limit_is_one_for_all_or_one_for_each(toml):
    config = load_config(toml("[top1]\nmax_drop = 1\n[top5]\nmax_drop = { float = 2, release = 0.5 }\n"))
    assert config.compared() == {"top1": 1.0, "top5": {"float": 2.0, "release": 0.5}}


def test_the_template_has_the_defaults_and_knows_every_key():
    text = TEMPLATE.read_text()
    config = load_config(TEMPLATE)
    assert config.top1 == GateConfig().top1
    assert (config.policy, config.confidence, config.require_paired) == ("strict", 0.9, True)
    uncommented = re.sub(r"^# (\[|\w+ = )", r"\1", text, flags=re.MULTILINE).replace(
        "\nmax_drop = { ", "\n# max_drop = { "
    )
    everything = GateConfig.read("", tomllib.loads(uncommented))
    assert [name for name in RULES if getattr(everything, name) is None] == []
    for name in RULES:
        missing = [field.name for field in fields(getattr(everything, name)) if f"{field.name} = " not in text]
        assert missing == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top_1 = 3", "gate file: unknown key 'top_1'. Did you mean 'top1'?"),
        ("[top1]\nmax_dorp = 1", "gate table [top1]: unknown key 'max_dorp'. Did you mean 'max_drop'?"),
        ("[top1]", "gate table [top1]: 'max_drop' is missing"),
        ("top1 = 1", "gate rule top1: got 1, wanted a table with max_drop or policy"),
        ("[top1]\nmax_drop = '1'", "gate rule top1.max_drop (--max-drop): got '1', wanted a number from 0 to 100"),
        ("[top1]\nmax_drop = -1", "got -1, wanted a number from 0 to 100"),
        ("[top1]\nmax_drop = nan", "got nan, wanted a number from 0 to 100"),
        ("[top1]\nmax_drop = true", "got True, wanted a number from 0 to 100"),
        ("[top1.max_drop]\nfloat = 'x'", "gate rule top1.max_drop.float: got 'x'"),
        ("[flips]\nmax_percent = 101", "gate rule flips.max_percent: got 101"),
        ("[size]", "gate table [size]: wanted max_ratio or max_bytes"),
        ("[size]\nmax_bytes = 1.5", "gate rule size.max_bytes: got 1.5, wanted an integer of 1 or more"),
        ("[size]\nmax_ratio = 0", "gate rule size.max_ratio: got 0, wanted a number above 0"),
        ("[floor]\npolicy = 'strict'", "gate table [floor]: wanted top1 or top5"),
        ("[latency]\nmax_ratio = 1\nevidence = 'b.json'", "gate rule latency.evidence: got 'b.json', wanted a list"),
        ("policy = 'strikt'", "gate rule policy (--policy): got 'strikt', wanted one of strict, point, lenient"),
        ("policy = ['strict']", "got ['strict'], wanted one of strict, point, lenient"),
        ("confidence = 90", "gate rule confidence (--confidence): got 90, wanted a number from 0.5 to 0.9999"),
        ("require_paired = 1", "gate rule require_paired: got 1, wanted true or false"),
        ("baselines = 'f.json'", "gate rule baselines: got 'f.json', wanted a table of paths"),
        ("[baselines]\nfloat = ''", "gate rule baselines.float: got '', wanted the path of a file"),
    ],
)
def test_a_bad_key_is_refused_by_name(toml, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        load_config(toml(text))


def test_a_file_that_is_missing_or_not_toml_is_refused(toml, tmp_path):
    with pytest.raises(InputError, match="gate init"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is not TOML"):
        load_config(toml("[top1\n"))
    path = toml("")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(path)


def test_options_win_and_what_is_not_given_stays(toml):
    config = load_config(toml("policy = 'lenient'\nconfidence = 0.8\n[top1]\nmax_drop = 3\npolicy = 'point'\n"))
    changed = config.with_options(baselines=BASELINES, max_drop=0.5, confidence=0.95)
    assert (changed.policy, changed.confidence, changed.baselines) == ("lenient", 0.95, BASELINES)
    assert changed.top1 == DropConfig(0.5, "point")


def test_baselines_that_are_given_join_those_of_the_file_and_beat_them_by_name():
    config = GateConfig(baselines=BASELINES, top1=DropConfig({"float": 2.0, "release": 0.5, "last": 1.0}))
    changed = config.with_options(baselines={"float": Path("x.json"), "last": Path("l.json")})
    assert changed.baselines == {**BASELINES, "float": Path("x.json"), "last": Path("l.json")}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {}, "gate rule top1 has no baseline to compare with. Give --baseline float=RESULT.json"),
        ({"floor": FloorConfig(70.0)}, {"baselines": BASELINES}, "baseline 'float' is compared by no rule"),
        (
            {"top1": DropConfig({"flaot": 1.0})},
            {"baselines": BASELINES},
            "limit for baseline 'flaot', which is not there. Did you mean 'float'?",
        ),
        (
            {"top1": DropConfig({"float": 1.0, "release": 1.0}), "baselines": BASELINES},
            {"baselines": {"baseline": Path("b.json")}},
            "baseline 'baseline' is compared by no rule: limits are for float, release",
        ),
        (
            {"top1": DropConfig({"float": 1.0}), "baselines": BASELINES},
            {},
            "baseline 'release' is compared by no rule: limits are for float",
        ),
        ({"baselines": BASELINES}, {"latency": (Path("b.json"),)}, "--latency needs a limit"),
        ({"baselines": BASELINES}, {"max_drop": 101.0}, "gate rule top1.max_drop (--max-drop): got 101.0"),
    ],
)
def test_rules_and_baselines_that_leave_each_other_unused_are_refused(config, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        GateConfig(**config).with_options(**options)


def test_values_made_in_python_are_checked_too():
    with pytest.raises(UsageError, match="max_drop"):
        DropConfig("1")
    with pytest.raises(UsageError, match="wanted max_ratio or max_bytes"):
        SizeConfig()
