"""What the report is made from, and what it refuses: each message, and that nothing is written then."""

import json

import pytest
from click.testing import CliRunner

from fimaq.cli.main import cli
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.report import write_report

STEP = {"event": "step", "block": "blocks.0", "step": 50, "loss": 1.0, "beta": None}
GRID = {
    "event": "grid", "block": "blocks.0", "layer": "blocks.0.fc", "operand": "weight", "bits": 3, "snr_db": 9.0,
    "clipped": 0.0, "range": [-2.0, 10.0], "counts": [1, 2, 3],
}  # fmt: skip


@pytest.fixture
def refused(tmp_path):
    """``refused(sources, error, message)``; afterwards there must be no page."""
    out = tmp_path / "out" / "page.html"

    def check(sources, error, match):
        with pytest.raises(error, match=match):
            write_report(sources, out)

    yield check
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'event'"),
        (json.dumps({**STEP, "loss": "low"}), "loss is 'low', wanted float"),
        (json.dumps({**STEP, "loss": float("nan")}), "it holds NaN"),
        (json.dumps({"event": "step", "block": "x"}), "step is 'None', wanted int"),
        (json.dumps({**GRID, "counts": [0, 0]}), "the histogram of blocks.0.fc weight is none"),
        (json.dumps({**GRID, "counts": [-1, 2]}), "the histogram of blocks.0.fc weight is none"),
        (json.dumps({**GRID, "counts": ["1"]}), "TypeError"),
        (json.dumps({**GRID, "range": [0, 7]}), "the histogram of blocks.0.fc weight is none"),
        (json.dumps({**GRID, "range": [-1]}), "ValueError"),
        (json.dumps({**GRID, "bits": 70000}), "the histogram of blocks.0.fc weight is none"),
    ],
)
def test_a_log_that_is_none(line, reason, new_run, refused):
    run = new_run()
    (run / "log.jsonl").write_text(line + "\n")
    refused([run], InputError, f"log.jsonl is missing or not a log of .*{reason}")


def test_a_log_that_is_missing(new_run, refused):
    run = new_run()
    (run / "log.jsonl").unlink()
    refused([run], InputError, "log.jsonl is missing or not a log")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seconds": {"total": 1.0}}, "KeyError: 'calibrate'"),
        ({"device": 3}, "device is '3'"),
        ({"blocks": [{"name": "head"}]}, "kind is 'None', wanted str"),
        ({"blocks": {"head": 1}}, "AttributeError"),
        ({"recipe": {"name": "x"}}, "KeyError: 'activations'"),
        (
            {"layers": [{"name": "gone", "op": "linear", "weight_bits": 4, "activation_bits": 4, "granularity": "x"}]},
            "gone.weight.scale",
        ),
    ],
)
def test_a_manifest_that_is_none(changes, reason, new_run, refused):
    refused([new_run(**changes)], InputError, f"has a manifest that .* does not write .*{reason}")


def test_a_run_that_was_changed(new_run, refused):
    run = new_run()
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    refused([run], InputError, "was changed after it was saved")


def test_a_result_that_was_changed(new_result, refused):
    result = new_result()
    result.write_text(result.read_text().replace('"top1": 80.0', '"top1": 90.0'))
    refused([result], InputError, "was changed since it was written")


def test_sources_that_are_neither(new_run, refused, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    refused([new_run(), tmp_path / "model.onnx"], InputError, "model.onnx is neither a run folder nor a result")
    refused([tmp_path / "nowhere"], InputError, "nowhere does not exist; wanted a run folder or RESULT.json")
    (tmp_path / ".begun.unfinished").mkdir()
    refused([tmp_path / "begun"], InputError, "begun is not finished. Go on with `quantize --resume`")
    refused([tmp_path], InputError, "is not a run folder: it has no manifest.json")
    refused([], UsageError, "got no run; wanted RUN folders, RESULT.json files or both")


def test_outputs_that_cannot_be_meant(new_run, tmp_path):
    run = new_run()
    with pytest.raises(UsageError, match=r"-o .*page\.pdf does not end in \.html"):
        write_report([run], tmp_path / "page.pdf")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(InputError, match=r"page\.html exists\. Give another -o, or --force"):
        write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"
    write_report([run], tmp_path / "page.html", force=True)
    assert "run-a" in (tmp_path / "page.html").read_text()


def test_the_same_sources_give_the_same_page(new_run, tmp_path):
    run = new_run()
    write_report([run], tmp_path / "a.html")
    write_report([run], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_command_says_what_it_wrote(new_run, new_result, tmp_path):
    out = tmp_path / "page.html"
    run, result = new_run(), new_result()
    done = CliRunner().invoke(cli, ["report", str(run), str(result), "-o", str(out), "--json"])
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1), done.stderr
    assert json.loads(done.stdout) == {
        "report": str(out), "bytes": out.stat().st_size, "runs": [str(run)], "results": [str(result)]
    }  # fmt: skip
    done = CliRunner().invoke(cli, ["report", str(run), "-o", str(out), "--force"])
    assert done.stdout.startswith(f"{out}: 1 run(s), 0 result(s), ")
