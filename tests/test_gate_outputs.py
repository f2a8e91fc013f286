"""The gate's outputs, read back by the programs that others read them with."""

import io
import itertools
import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt
from sarif.loader import load_sarif_file

from fimaq.deploy.gate.outputs import github, junit, markdown, quantities, sarif, text
from fimaq.deploy.gate.outputs.advice import advice
from fimaq.deploy.gate.outputs.github import publish
from fimaq.deploy.gate.report import BaselineSummary, EvidenceSummary, Flips, GateReport, RuleResult

PASSED = RuleResult("top1", "top1", "float", 81.54, 81.46, -0.08, (-0.6, 0.5), 1.0, "points", "pass", "top-1 held")
FAILED = replace(PASSED, reference="release", verdict="fail", delta=-4.23, message="top-1 fell by 4.23 points")
UNDECIDED = replace(PASSED, name="top5", metric="top5", verdict="inconclusive", message="unsure", images_needed=2900)
ADVISORY = RuleResult("latency", "latency", "", None, 1.12, None, None, 1.05, "ratio", "fail", "slower", None, False)
FLOOR = RuleResult("min_top1", "top1", "", None, 81.46, None, (79.3, 83.4), 80.0, "percent", "pass", "above 80 %")
SIZE = RuleResult("size", "size", "float", 22.9e6, 6.3e6, -16.6e6, None, 8e6, "bytes", "pass", "small enough")
EVERY = (PASSED, FAILED, UNDECIDED, ADVISORY, FLOOR, SIZE)
NUMBERS = ["81.54 %", "81.46 %", "-0.08 points", "-0.60 to +0.50 points", "≥ -1.00 points"]
"""Of PASSED, as people read them."""
WARNING = "the release has no per-image data"

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)
"""Text without control characters, which Markdown has its own rules for."""


def evidence(model="deit.onnx", path="results/deit.json"):
    return EvidenceSummary(path, model, "0" * 64, 6_300_000, 1300, 81.46, 95.2)


def report(*rules, warnings=(), model="deit.onnx", path="results/deit.json", reference="float"):
    baseline = BaselineSummary(reference, evidence("float.onnx"), True, Flips(20, 75, 140), 1.2e-8)
    return GateReport(evidence(model, path), (baseline,), rules, "strict", 0.95, warnings)


def suites(document):
    return list(JUnitXml.fromstring(document.encode()))


def test_junit_tells_failed_inconclusive_and_skipped_rules_apart():
    (suite,) = suites(junit(report(*EVERY)))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (6, 1, 1, 1)
    outcomes = {case.name: [type(outcome) for outcome in case.result] for case in suite}
    assert outcomes == {
        "top1 vs float": [],
        "top1 vs release": [Failure],
        "top5 vs float": [Error],
        "latency": [Skipped],
        "min_top1": [],
        "size vs float": [],
    }


def test_junit_counts_agree_with_the_cases():
    document = JUnitXml.fromstring(junit(report(*EVERY)).encode())
    written = (document.tests, document.failures, document.errors, document.skipped)
    document.update_statistics()
    assert written == (document.tests, document.failures, document.errors, document.skipped)


def test_junit_says_why_and_with_which_numbers():
    (suite,) = suites(junit(report(FAILED)))
    (outcome,) = next(iter(suite)).result
    assert (outcome.type, outcome.message) == ("fail", FAILED.message)
    assert "baseline 81.54 %, candidate 81.46 %, change -4.23 points" in outcome.text
    assert "interval -0.60 to +0.50 points, limit ≥ -1.00 points" in outcome.text


def test_junit_has_the_warnings_and_the_statistics():
    (suite,) = suites(junit(report(PASSED, warnings=(WARNING, "another"))))
    assert suite._elem.findtext("system-out") == f"{WARNING}\nanother"
    found = {item.name: item.value for item in suite.properties()}
    assert found == {
        **{"verdict": "pass", "n": "1300", "policy": "strict", "confidence": "0.95"},
        **{"fixed": "20", "broken": "75", "mcnemar_p": "1.2e-08"},
    }


@given(TEXT, TEXT, TEXT)
def test_junit_holds_any_text(model, reference, message):
    rule = replace(FAILED, reference=reference, message=message)
    (suite,) = suites(junit(report(rule, model=model, warnings=(message,))))
    (case,) = suite
    invalid = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
    assert case.classname == invalid.sub("\ufffd", model)
    assert case.result[0].message == invalid.sub("\ufffd", message)


def log(tmp_path, found):
    path = tmp_path / "gate.sarif"
    path.write_text(sarif(found), encoding="utf-8")
    return load_sarif_file(str(path))


def test_sarif_has_a_result_for_each_rule_that_did_not_pass(tmp_path):
    records = log(tmp_path, report(*EVERY)).get_records()
    assert [(record["Severity"], record["Code"], record["Description"]) for record in records] == [
        ("error", "top1", FAILED.message),
        ("warning", "top5", UNDECIDED.message),
        ("note", "latency", ADVISORY.message),
    ]
    assert {(record["Location"], record["Line"]) for record in records} == {("results/deit.json", 1)}


def test_sarif_of_a_pass_is_a_run_without_results(tmp_path):
    found = log(tmp_path, report(PASSED))
    assert found.get_distinct_tool_names() == ["fimaq-tool gate"]
    assert found.get_result_count() == 0


def test_sarif_results_refer_to_their_rules():
    (run,) = json.loads(sarif(report(*EVERY)))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[found["ruleIndex"]]["id"] for found in run["results"]] == [
        found["ruleId"] for found in run["results"]
    ]


def test_sarif_alerts_keep_their_identity_and_differ_by_baseline_and_model():
    def fingerprints(found):
        results = json.loads(sarif(found))["runs"][0]["results"]
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in results]

    first = fingerprints(report(FAILED, replace(FAILED, reference="float")))
    assert first == fingerprints(
        report(replace(FAILED, delta=-9.0, message="worse"), replace(FAILED, reference="float"))
    )
    assert len({*first, *fingerprints(report(FAILED, model="swin.onnx"))}) == 3


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("results/a b%.json", "results/a%20b%25.json"),
        ("c:d.json", "c%3Ad.json"),
        ("/data/a b.json", "file" + "://" + "/data/a%20b.json"),
    ],
)
def test_sarif_locations_are_uris(path, uri):
    (run,) = json.loads(sarif(report(FAILED, path=path)))["runs"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


def rendered(page):
    """Tokens of the page as GitHub's dialect reads it."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)


def texts(tokens, kind):
    """The inline content that follows each token of a kind; what is not plain text shows as its token's name."""
    plain = {"text": lambda t: t.content, "code_inline": lambda t: t.content, "softbreak": lambda t: "\n"}
    plain["text_special"] = plain["text"]
    return [
        "".join(plain.get(child.type, lambda t: f"<{t.type}>")(child) for child in after.children)
        for token, after in itertools.pairwise(tokens)
        if token.type == kind
    ]


def test_markdown_begins_with_the_verdict():
    tokens = rendered(markdown(report(*EVERY)))
    assert (tokens[0].type, tokens[0].tag) == ("heading_open", "h2")
    assert texts(tokens, "heading_open") == ["Accuracy gate: ❌ fail"]


def test_markdown_has_a_line_per_rule():
    cells = texts(rendered(markdown(report(*EVERY))), "td_open")
    assert [cells[start : start + 7] for start in range(0, len(cells), 7)] == [
        ["✅ pass", "top1 vs float", *NUMBERS],
        ["❌ fail", "top1 vs release", *NUMBERS[:2], "-4.23 points", *NUMBERS[3:]],
        ["❔ inconclusive", "top5 vs float", *NUMBERS],
        ["⚠️ warning", "latency", "-", "1.120", "-", "-", "≤ 1.050"],
        ["✅ pass", "min_top1", "-", "81.46 %", "-", "79.30 to 83.40 %", "≥ 80.00 %"],
        ["✅ pass", "size vs float", "22.90 MB", "6.30 MB", "-16.60 MB", "-", "≤ 8.00 MB"],
    ]


def test_markdown_explains_each_rule_that_did_not_pass():
    tokens = rendered(markdown(report(*EVERY)))
    assert texts(tokens, "paragraph_open")[1:-1] == [
        "top1 vs release: top-1 fell by 4.23 points",
        "top5 vs float: unsure",
        "latency: slower",
    ]


def test_markdown_names_models_images_and_flips():
    summary = texts(rendered(markdown(report(PASSED))), "paragraph_open")[0]
    assert summary == (
        "deit.onnx against float on 1,300 images, policy strict, 95 % intervals. Flips against float: 20 newly right, "
        "75 newly wrong (exact McNemar p = 1.2e-08)."
    )


@pytest.mark.parametrize(
    ("rules", "advice"),
    [
        ([PASSED], "fimaq-tool gate update"),
        ([FAILED, UNDECIDED], "more bits or a longer recipe"),
        ([UNDECIDED], "Evaluate both models on about 2,900 images"),
        ([replace(UNDECIDED, images_needed=13_000)], "Evaluate both models on about 13,000 images"),
        (
            [replace(UNDECIDED, images_needed=13_001)],
            "all but at the limit: raise the limit (`--max-drop`), or quantize",
        ),
        ([replace(UNDECIDED, images_needed=None)], "too close to the limit"),
    ],
)
def test_markdown_ends_with_what_to_do_next(rules, advice):
    assert advice in markdown(report(*rules)).splitlines()[-1]


@given(PRINTABLE, PRINTABLE, PRINTABLE)
def test_markdown_shows_any_text_as_it_is(model, reference, message):
    found = report(replace(FAILED, reference=reference, message=message), model=f"m{model}")
    tokens = rendered(markdown(found))
    title = f"top1 vs {reference}" if reference else "top1"

    def shown(words):
        return " ".join(words.split())

    assert texts(tokens, "td_open")[1] == shown(title)
    assert shown(f"{shown(title)}: {shown(message)}") in map(shown, texts(tokens, "paragraph_open"))
    assert texts(tokens, "paragraph_open")[0].startswith(shown(f"m{model}"))


def test_text_has_the_verdict_a_line_per_rule_the_reasons_and_what_to_do_next():
    first, _, headers, _, *rest = text(report(UNDECIDED, ADVISORY, warnings=(WARNING,))).splitlines()
    assert first == "accuracy gate: inconclusive on 1,300 images, policy strict, 95 % intervals"
    assert headers.split() == ["rule", "baseline", "candidate", "change", "interval", "limit"]
    assert [re.split(r"\s{2,}", line) for line in rest[:2]] == [
        ["inconclusive", "top5 vs float", *NUMBERS],
        ["warning", "latency", "-", "1.120", "-", "-", "≤ 1.050"],
    ]
    assert [line for line in rest[2:] if line] == [
        "top5 vs float: unsure",
        "latency: slower",
        "against float: 75 images newly wrong, 20 newly right, exact McNemar p 1.2e-08",
        f"warning: {WARNING}",
        "what next: Evaluate both models on about 2,900 images: at the rates seen here, that many decide. Or raise the "
        "limit (--max-drop).",
    ]


def test_a_change_of_percents_is_in_points():
    assert quantities.change(replace(FLOOR, delta=1.5)) == "+1.50 points"


def runner_commands(stream):
    """Workflow commands as the runner reads them: one a line, percent-escapes undone."""

    def plain(escaped):
        for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            escaped = escaped.replace(code, character)
        return escaped

    found = []
    for line in stream.split("\n")[:-1]:
        name, title, message = re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line, flags=re.DOTALL).groups()
        found.append((name, plain(title), plain(message)))
    return found


def runner_outputs(file):
    """A file of step outputs as the runner reads it: ``name<<delimiter`` up to a line that is the delimiter."""
    lines, found = iter(file.split("\n")), {}
    for line in lines:
        if line:
            name, delimiter = line.split("<<", 1)
            found[name] = "\n".join(iter(lambda: next(lines), delimiter))
    return found


def published(found, tmp_path, **environ):
    files = {"GITHUB_STEP_SUMMARY": tmp_path / "summary", "GITHUB_OUTPUT": tmp_path / "output"}
    stream = io.StringIO()
    publish(found, {"GITHUB_ACTIONS": "true", **{name: str(path) for name, path in files.items()}, **environ}, stream)
    return stream.getvalue(), *(path.read_text() if path.exists() else None for path in files.values())


def test_github_gets_an_annotation_for_each_rule_that_did_not_pass(tmp_path):
    commands, _, _ = published(report(*EVERY, warnings=(WARNING,)), tmp_path)
    assert runner_commands(commands) == [
        ("warning", "Accuracy gate", WARNING),
        ("error", "Accuracy gate: top1 vs release", FAILED.message),
        ("warning", "Accuracy gate: top5 vs float", UNDECIDED.message),
        ("warning", "Accuracy gate: latency", ADVISORY.message),
    ]


def test_github_gets_a_notice_of_a_pass(tmp_path):
    commands, _, _ = published(report(PASSED), tmp_path)
    assert runner_commands(commands) == [("notice", "Accuracy gate", "deit.onnx passed on 1,300 images, policy strict")]


@example(reference="%3A,", message="5 %0A\r\n::error::%25")
@given(reference=TEXT, message=TEXT)
def test_no_text_can_start_a_command_or_leave_its_own(reference, message):
    rule = replace(FAILED, reference=reference, message=message)
    lines = "".join(f"{line}\n" for line in github.commands(report(rule)))
    assert runner_commands(lines) == [("error", f"Accuracy gate: {rule.title}", message)]


def test_github_summaries_and_outputs_are_appended_to_what_is_there(tmp_path):
    (tmp_path / "summary").write_text("before\n")
    (tmp_path / "output").write_text("before<<E\nvalue\nE\n")
    _, summary, output = published(report(UNDECIDED, FLOOR), tmp_path)
    assert summary == f"before\n{markdown(report(UNDECIDED, FLOOR))}\n"
    found = runner_outputs(output)
    assert json.loads(found.pop("report")) == json.loads(json.dumps(report(UNDECIDED, FLOOR).to_json()))
    assert found == {"before": "value", "verdict": "inconclusive", "n": "1300", "delta": "", "images_needed": "2900"}


def test_the_delta_published_is_that_of_top_1_against_the_first_baseline(tmp_path):
    _, _, output = published(report(UNDECIDED, FLOOR, PASSED, FAILED), tmp_path)
    assert runner_outputs(output)["delta"] == "-0.0800"


def test_an_output_s_delimiter_cannot_be_guessed(tmp_path):
    delimiters = [published(report(PASSED), tmp_path)[2].split("\n")[0] for _ in range(2)]
    assert delimiters[0] == delimiters[1]
    written = (tmp_path / "output").read_text()
    assert len(set(re.findall(r"^\w+<<(\w{32})$", written, flags=re.MULTILINE))) == 2 * 5


@pytest.mark.parametrize("value", ["false", ""])
def test_elsewhere_nothing_is_published(tmp_path, value):
    assert published(report(FAILED), tmp_path, GITHUB_ACTIONS=value) == ("", None, None)


def test_a_runner_without_files_gets_the_annotations(tmp_path):
    commands, summary, output = published(report(FAILED), tmp_path, GITHUB_STEP_SUMMARY="", GITHUB_OUTPUT="")
    assert len(runner_commands(commands)) == 1
    assert (summary, output) == (None, None)


def test_a_candidate_that_only_costs_too_much_is_not_told_to_take_more_bits():
    slow = RuleResult("latency", "latency", "", None, 1.12, None, None, 1.05, "ratio", "fail", "12 % slower")
    assert "misses latency: quantize with fewer bits" in advice(report(slow))
    assert "more bits" in advice(report(slow, FAILED))
