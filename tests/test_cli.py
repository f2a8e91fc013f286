"""The command line as scripts and people meet it: exit codes, streams, precedence, help."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fimaq.cli.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, report
from fimaq.cli.main import COMMANDS, cli
from fimaq.cli.options import typed
from fimaq.cli.progress import BarProgress, LineProgress
from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.errors import EnvironmentProblem, GateFailed, GateInconclusive, InputError, UsageError
from fimaq.toolchain.image_input import ImageInput
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.recipe import DEFAULT_RECIPE, PRESETS, Recipe, load_recipe

TOOL = [sys.executable, "-m", "fimaq.cli.main"]
QUANTIZED = {
    "run": "run",
    "model": "demo_vit",
    "wbits": 4,
    "abits": 4,
    "fisher": "dplr",
    "seed": 0,
    "seconds": {"calibrate": 1.0, "reconstruct": 2.0, "total": 3.0},
    "blocks": [{"name": "blocks.0", "loss_first": 2.0, "loss_last": 1.0, "seconds": 2.0}],
    "sha256": "0" * 64,
}
EXPORTED = {
    "onnx": "m.onnx",
    "target": "ort-cpu",
    "opset": 21,
    "bytes": 123456,
    "layers": {"integer": 5, "float": 0},
    "parity": {"images": 8, "top1_agreement": 87.5, "noise_floor": 75.0, "snr_db": 40.24, "codes_equal": True},
}


@dataclass(frozen=True)
class Request:
    """Stands for QuantizeRequest."""

    model: str
    data: str
    out: Path
    weights: Path | None
    recipe: Recipe
    device: str
    resume: bool
    force: bool
    labels: Path | None
    cache: str = "auto"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FIMAQ_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_estimates(monkeypatch):
    """What a dry run says of memory is in test_caches.py."""
    monkeypatch.setattr("fimaq.toolchain.quantize.plan_untrained", lambda *how: types.SimpleNamespace(lines=list))


@pytest.fixture
def quantized(monkeypatch):
    """Replaces ``quantize``: what it was asked goes into ``.requests``; set ``.outcome`` to make it raise."""
    fake: Any = types.ModuleType("fimaq.toolchain.quantize")
    fake.requests, fake.outcome = [], None

    def quantize(request, progress, announce=lambda line: None):
        announce("caches in memory: needs about 3.14 GB of memory")
        sys.stdout.write("chatter of some library\n")
        with progress.task("reconstruct", 2) as task:
            task.advance(2, loss=0.25)
        fake.requests.append(request)
        if fake.outcome is not None:
            raise fake.outcome
        return QUANTIZED

    fake.quantize, fake.QuantizeRequest = quantize, Request
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """Replaces the two exporters; records their calls. The working directory has a folder ``run``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    fake: Any = types.ModuleType("fimaq.toolchain.export")
    fake.calls = []

    def export_run(run, out, **options):
        fake.calls.append(("run", run, out, options))
        return EXPORTED

    def export_float(model, out, **options):
        fake.calls.append(("float", model, out, options))
        return {**EXPORTED, "onnx": str(out), "target": "float", "layers": {"integer": 0, "float": 0}}

    fake.export_run, fake.export_float = export_run, export_float
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


@pytest.fixture
def run(tmp_path):
    """A run folder of one layer."""
    layer = {"name": "head", "op": "linear", "weight_bits": 4, "activation_bits": 3, "granularity": "tensor"}
    manifest = {
        "recipe": {},
        "model": {"name": "demo_vit"},
        "layers": [{**layer, "weight_granularity": "channel"}],
        "preprocessing": {},
        "classes": {},
    }
    Artifact(manifest, {"head.weight.codes": np.zeros((2, 3), np.uint8)}).save(tmp_path / "run")
    return tmp_path / "run"


def write_model(path, side, names):
    """An ONNX file: 8-bit quantized scores of red, green, blue and nothing, with the metadata an export writes."""
    count = len(names)
    constants = {
        "head.input.scale": np.float32(0.1),
        "head.input.zero_point": np.uint8(128),
        "head.weight.codes": (np.eye(3, count) + 1).astype(np.uint8),
        "head.weight.scale": np.ones(count, np.float32),
        "head.weight.zero_point": np.ones(count, np.uint8),
        "axes": np.array([2, 3]),
        "rows": np.array([-1, 1, 3]),  # a product of two matrices would become a float Gemm
        "flat": np.array([-1, count]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "rows"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "head.input.scale", "head.input.zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "head.input.scale", "head.input.zero_point"], ["dq"]),
        helper.make_node(
            "DequantizeLinear", ["head.weight.codes", "head.weight.scale", "head.weight.zero_point"], ["w"], axis=1
        ),
        helper.make_node("MatMul", ["dq", "w"], ["head/output"], name="head/MatMul"),
        helper.make_node("Reshape", ["head/output", "flat"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rgb",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    layer = {"name": "head", "op": "linear", "weight_bits": 8, "activation_bits": 8, "granularity": "tensor"}
    unused = {**layer, "name": "blocks.0.attn.qk", "op": "matmul", "weight_bits": None}
    preprocessing = Preprocessing(side, side, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    helper.set_model_props(
        proto,
        {
            "fimaq.format": "1",
            "fimaq.preprocessing": preprocessing.to_json(),
            "fimaq.classes": json.dumps({"wnids": None, "names": names}),
            "fimaq.layers": json.dumps([layer, unused]),
            "fimaq.provenance": json.dumps({"model": "rgb"}),
        },
    )
    onnx.save(proto, path)


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "model.onnx", side=4, names=["red", "green", "blue"])
    return tmp_path / "model.onnx"


@pytest.fixture
def images(tmp_path):
    """Two images a class; one blue image is red, so top-1 is five of six."""
    for index, name in enumerate(("red", "green", "blue")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(2):
            colour = [0, 0, 0]
            colour[0 if name == "blue" and number else index] = 255
            Image.new("RGB", (4, 4), tuple(colour)).save(tmp_path / "val" / name / f"{number}.png")
    return tmp_path / "val"


def invoke(*words, env=None):
    return CliRunner().invoke(cli, [str(word) for word in words], env=env)


def only_json(result):
    """The one JSON object on stdout."""
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# --- help


def test_the_help_page_lists_what_there_is_and_no_more():
    result = invoke("--help")
    assert result.exit_code == 0
    names = [
        "quantize",
        "export",
        "evaluate",
        "gate",
        "bench",
        "serve",
        "inspect",
        "sweep",
        "report",
        "package",
        "demo",
        "env",
    ]
    assert list(COMMANDS) == names
    for name, line in COMMANDS.items():
        assert name in result.stdout
        assert line in result.stdout


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=lambda w: w[0])
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
sys.argv = ["fimaq-tool", *{words!r}]
from fimaq.cli.main import main
try:
    main()
except SystemExit as done:
    assert done.code == 0, done.code
heavy = {{"torch", "timm", "numpy", "onnx", "onnxruntime", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_one_example_that_parses(name):
    page = invoke(name, "--help").stdout
    assert page.count("Example:") == 1
    words = shlex.split(page.split("Example:")[1].strip().splitlines()[0])
    assert words[:2] == ["fimaq-tool", name]
    context = click.Context(cli)
    command = cli.get_command(context, name)
    command.make_context(name, words[2:])  # raises where the example names an option that is not there


def test_every_preset_is_named_in_the_help_of_quantize():
    page = " ".join(invoke("quantize", "--help").stdout.split())
    assert f"Presets: {', '.join(PRESETS)}." in page


def test_the_installed_command_and_its_version():
    ran = subprocess.run([*TOOL, "--version"], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("fimaq-tool, version ")


# --- exit codes and messages


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("the gate failed"), 1),
        (UsageError("cannot be meant"), 2),
        (GateInconclusive("cannot tell"), 3),
        (InputError("corrupt"), 4),
        (EnvironmentProblem("no such device"), 5),
        (MemoryError("cannot allocate"), 5),
        (PermissionError(13, "Permission denied", "/run"), 5),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (ZeroDivisionError("oops"), EXIT_INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_has_its_exit_code_and_a_message_without_traceback(quantized, error, code):
    quantized.outcome = error
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert result.exit_code == code
    assert result.stdout == ""
    verdict = isinstance(error, GateFailed | GateInconclusive)
    assert result.stderr.splitlines()[-1].startswith("Error: ") != verdict
    assert str(error) in result.stderr or isinstance(error, KeyboardInterrupt | PermissionError)
    assert "Traceback" not in result.stderr
    in_json = invoke("quantize", "demo_vit", "--data", "d", "-o", "r", "--json")
    assert in_json.exit_code == code
    assert in_json.stderr.splitlines()[-1] == result.stderr.splitlines()[-1]
    message = result.stderr.splitlines()[-1].removeprefix("Error: ")
    wanted = {"type": type(error).__name__, "message": message, "exit_code": code}
    assert json.loads(in_json.stdout) == {"error": wanted}


def test_an_internal_error_asks_for_a_report(quantized):
    quantized.outcome = ZeroDivisionError("oops")
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert "internal error, a bug in fimaq-tool: ZeroDivisionError: oops" in result.stderr
    assert "Run it again with --debug" in result.stderr


def test_a_package_that_is_not_installed_is_named_and_no_bug(quantized):
    quantized.outcome = ModuleNotFoundError("No module named 'torch'", name="torch")
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert result.exit_code == 5
    message = "Error: the package torch is not installed here. In the checkout: pip install ."
    assert result.stderr.splitlines()[-1] == message


def test_a_place_that_cannot_be_written_is_named_without_numbers(quantized):
    quantized.outcome = PermissionError(13, "Permission denied", "/run")
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert "Error: Permission denied: /run. Give your user access to it, or use another place." in result.stderr


def test_a_machine_without_a_temporary_folder_is_no_bug(quantized, monkeypatch):
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)  # Python's own words
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    quantized.outcome = caught.value
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert result.exit_code == 5
    assert "No usable temporary directory found in" in result.stderr
    assert result.stderr.rstrip().endswith("Free some space or set TMPDIR.")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("quantize", "the same command with --resume goes on after the last finished block."),
        ("sweep", "type the same command again to go on."),
        ("demo", "the same command with --force starts anew."),
        ("evaluate", "no output was written."),
        (None, "no output was written."),
    ],
)
def test_who_interrupts_a_command_hears_what_is_left_of_it(command, message, capsys):
    assert report(KeyboardInterrupt(), {}, command) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == f"Error: interrupted; {message}\n"


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["--debug", "quantize", "demo_vit", "--data", "d", "-o", "r"], {}),
        (["quantize", "demo_vit", "--data", "d", "-o", "r", "--debug"], {}),
        (["quantize", "demo_vit", "--data", "d", "-o", "r"], {"FIMAQ_DEBUG": "1"}),
    ],
    ids=["global", "command", "variable"],
)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(quantized, words, env):
    quantized.outcome = InputError("corrupt")
    result = invoke(*words, env=env)
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "Error: corrupt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'."),
        (["quantise"], "No such command 'quantise'. Did you mean 'quantize'?"),
        (["quantize", "demo_vit", "--frob"], "No such option"),
        (["quantize", "demo_vit", "-o", "r"], "Missing option '--data'"),
        (["quantize", "demo_vit", "--data", "d"], "Missing option '-o' / '--out'"),
        (["quantize", "demo_vit", "--data", "d", "-o", "r", "--wbits", "9"], "9 is not in the range 2<=x<=8"),
        (["quantize", "demo_vit", "--data", "d", "-o", "r", "--fisher", "x"], "'x' is not one of 'dplr'"),
        (["quantize", "demo_vit", "--data", "d", "-o", "r", "--recipe", "fsat"], "Did you mean 'fast'"),
        (
            ["quantize", "demo_vit", "--data", "d", "-o", "r", "--device", "gpu"],
            "wanted auto, cpu, cuda or cuda:<index>",
        ),
        (["quantize", "demo_vit", "--data", "d", "-o", "r", "--resume", "--force"], "Give one of them"),
        (["quantize", "demo_vit", "--data", "d", "-o", "a/swin.txt"], "wanted a folder for the run. Give -o a/swin;"),
        (["quantize", "demo_vit", "--data", "d", "-o", "swin.ONNX"], "is the name of a file"),
        (["quantize", "demo_vit", "-o", "swin.onnx", "--dry-run"], "is the name of a file"),
        (
            ["quantize", "demo_vit", "--data", "d", "-o", "r", "--recon-samples", "4"],
            "Lower it too: --batch-size 4, or raise",
        ),
        (
            ["quantize", "demo_vit", "--data", "d", "-o", "r", "--recon-samples", "64"],
            "at most the 64 images of reconstruction, of which they are the first. Lower it too: --fisher-samples 64,",
        ),
        (
            ["quantize", "demo_vit", "--data", "d", "-o", ""],
            "the path is empty; wanted a name. Is a shell variable unset?",
        ),
        (["export", "run"], "Missing option '-o'"),
        (["export", "run", "-o", "m.txt"], "does not end in .onnx. Give -o m.onnx."),
        (["export", "run", "-o", "m.onnx", "--float"], "run is a folder, and --float takes the name of a model"),
        (["export", "run", "-o", "m.onnx", "--float", "--target", "portable"], "Leave out --target or --float"),
        (["export", "demo_vit", "-o", "m.onnx", "--float", "--allow-float"], "--allow-float is for quantized runs"),
        (["export", "run", "-o", "m.onnx", "--weights", "w.pth"], "Leave out --weights"),
        (["evaluate", "m.onnx"], "Missing option '--data'"),
        (["evaluate", "m.onnx", "--data", "d", "--device", "cpu"], "--device is for --backend torch"),
        (["evaluate", "r", "--data", "d", "--backend", "torch", "--threads", "2"], "--threads is for --backend ort"),
        (["evaluate", "m.onnx", "--data", "d", "--provider", "npu"], "'npu' is not one of 'cpu'"),
        (["evaluate", "m.onnx", "--data", "d", "-o", "result.txt"], "does not end in .json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_2_and_say_what_is_wanted(quantized, exported, words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    in_json = invoke(*words, "--json")
    assert in_json.exit_code == 2
    error = json.loads(in_json.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert message in " ".join(error["message"].split())
    assert quantized.requests == []
    assert exported.calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantize", "m", "--data", "d", "-o", "r", "--recipe", "absent.toml"], "does not exist"),
        (["inspect", "absent.onnx"], "wanted a run folder or an ONNX file. `fimaq-tool quantize` writes the one"),
        (["inspect", "demo_vit"], "of a float model, `fimaq-tool export MODEL --float`"),
        (["export", "demo_vit", "-o", "m.onnx"], "add --float: fimaq-tool export demo_vit --float -o m.onnx"),
        (["inspect", "."], "not a run folder"),
        (["evaluate", "absent.onnx", "--data", "d"], "wanted an ONNX file"),
        (["evaluate", ".", "--data", "d"], "is a folder; wanted an ONNX file. For a run folder add --backend torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_input_exits_4(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 4
    assert message in result.stderr
    assert result.stdout == ""


def test_a_path_that_is_not_there_is_not_taken_for_a_model():
    result = invoke("export", "runs/absent", "-o", "m.onnx")
    assert result.stderr == (
        "Error: there is no run folder runs/absent; wanted the -o folder of `fimaq-tool quantize`.\n"
    )


@pytest.mark.parametrize("parent", ["a-file", "/proc/fimaq"])
@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "absent.onnx", "--data", "d", "-o", "{}/r.json"],
        ["bench", "absent.onnx", "-o", "{}/b.json"],
        ["export", "absent", "--float", "-o", "{}/m.onnx"],
        ["report", "absent", "-o", "{}/r.html"],
        ["gate", "--baseline", "a.json", "--candidate", "b.json", "--junit", "{}/j.xml"],
        ["demo", "-o", "{}/demo"],
    ],
    ids=lambda words: words[0],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(words, parent, tmp_path, monkeypatch):
    """Before the inputs, which are not there, are looked for."""
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    result = invoke(*(word.format(parent) for word in words))
    assert result.exit_code == 4
    option = "--junit" if "--junit" in words else "-o"
    assert re.search(rf"Error: {parent}/\S+ cannot be written: \S+: .*\. Give another {option}\.", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_a_real_process_with_130_and_a_message(number):
    code = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
fake = types.ModuleType("fimaq.toolchain.quantize")
def quantize(request, progress, announce):
    print("started", file=sys.stderr, flush=True)
    time.sleep(30)
fake.quantize, fake.QuantizeRequest = quantize, lambda **values: None
sys.modules[fake.__name__] = fake
sys.argv = "fimaq-tool quantize demo_vit --data d -o r --device cuda --json".split()
from fimaq.cli.main import main
main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "started" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["exit_code"] == 130
    assert stderr == "Error: interrupted; the same command with --resume goes on after the last finished block.\n"


# --- streams


def test_json_is_one_object_on_stdout_whatever_libraries_print(quantized):
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r", "--json")
    assert only_json(result) == QUANTIZED
    assert "chatter of some library" in result.stderr
    assert "reconstruct: 2/2 in" in result.stderr
    assert "loss=0.25" in result.stderr


@pytest.mark.parametrize("words", [["quantize", "demo_vit"], ["quantize", "demo_vit", "--wbits", "9"]])
def test_a_variable_asks_for_errors_in_json_too(words):
    result = invoke(*words, env={"FIMAQ_JSON": "1"})
    assert result.exit_code == json.loads(result.stdout)["error"]["exit_code"] == 2


def test_what_fails_after_its_result_adds_no_second_object(quantized, monkeypatch):
    def fail(*words):
        raise GateFailed("the gate failed")

    monkeypatch.setattr("fimaq.cli.quantize.next_command", fail)
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == QUANTIZED


def test_without_json_the_result_is_text_on_stdout_alone(quantized):
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r")
    assert "demo_vit at W4/A4, fisher dplr, seed 0" in result.stdout
    assert "blocks.0" in result.stdout
    assert "chatter" not in result.stdout
    assert "next:" not in result.output  # no terminal here


def on_a_terminal(*words):
    """Exit code, stdout, and what a terminal on stderr shows."""
    terminal, inner = pty.openpty()
    with subprocess.Popen([*TOOL, *map(str, words)], stdout=subprocess.PIPE, stderr=inner) as process:
        os.close(inner)
        shown = b""
        try:
            while piece := os.read(terminal, 4096):
                shown += piece
        except OSError:  # Linux: the other end closed
            pass
        finally:
            os.close(terminal)
        stdout = process.stdout.read().decode()
    return process.returncode, stdout, shown.decode()


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_on_a_terminal_the_next_command_is_shown(run, as_json):
    code, stdout, shown = on_a_terminal("inspect", run, *as_json)
    assert code == 0
    assert shown == f"next: fimaq-tool export {run} -o {run}.onnx\r\n"
    assert "next:" not in stdout


def test_a_path_in_the_next_command_is_quoted(run):
    odd = run.rename(run.with_name("my run"))
    assert f"next: fimaq-tool export '{odd}' -o '{odd}.onnx'" in on_a_terminal("inspect", odd)[2]


def test_bars_are_drawn_and_lines_are_not(capsys):
    with BarProgress().task("calibrate", 3) as task:
        task.advance(2, loss=0.5)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "calibrate" in shown.err
    assert "2/3" in shown.err


def test_lines_are_indented_where_tasks_nest_and_appear_on_errors_too(capsys):
    progress = LineProgress()

    def stop():
        with progress.task("outer", 2), progress.task("inner", 4) as task:
            task.advance(3)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    inner, outer = capsys.readouterr().err.splitlines()
    assert inner.startswith("  inner: 3/4 in ")
    assert outer.startswith("outer: 0/2 in ")


# --- quantize


def test_quantize_passes_on_what_was_asked(quantized, tmp_path):
    words = "--weights w.pth --labels l.txt --device cuda:1 --cache disk --resume --recipe fast-w3a3 --iters 0 --seed 7"
    result = invoke("quantize", "demo_vit", "--data", "hfds/x", "-o", tmp_path / "r", *shlex.split(words), "--json")
    only_json(result)
    assert "needs about 3.14 GB" in result.stderr
    assert quantized.requests == [
        Request(
            model="demo_vit",
            data="hfds/x",
            out=tmp_path / "r",
            weights=Path("w.pth"),
            recipe=load_recipe("fast-w3a3").with_overrides(iters=0, seed=7),
            device="cuda:1",
            resume=True,
            force=False,
            labels=Path("l.txt"),
            cache="disk",
        )
    ]


def test_an_output_with_a_dot_in_its_name_is_a_folder(quantized):
    assert invoke("quantize", "demo_vit", "--data", "d", "-o", "runs/run-v1.2").exit_code == 0
    assert quantized.requests[0].out == Path("runs/run-v1.2")


@pytest.mark.parametrize(
    ("model", "message"),
    [("resnet50", "no family handles ResNet"), ("vit_small_patch14_dinov2", "has no classifier"), ("vitt", "unknown")],
)
def test_a_model_that_cannot_be_quantized_is_refused_before_the_hub_is_asked(monkeypatch, model, message):
    def asked():
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("fimaq.toolchain.hub._silence", asked)
    result = invoke("quantize", model, "--data", "d", "-o", "r")
    assert result.exit_code == 4
    assert message in result.stderr


HOURS = "no --recipe was given"
HOW_MANY = "about 100 times the work of --recipe fast"  # 20,000 steps of 32 images instead of 400 of 16


@pytest.mark.parametrize(
    ("words", "env", "warned"),
    [
        ([], {}, True),
        (["--device", "cpu", "--wbits", "8"], {}, True),
        (["--device", "cuda"], {}, False),
        (["--recipe", "deploy-w4a4"], {}, False),
        ([], {"FIMAQ_RECIPE": "deploy-w4a4"}, False),
        (["--iters", "0"], {}, False),
        (["--iters", "400"], {}, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_who_did_not_choose_the_recipe_hears_what_it_costs_on_a_cpu(quantized, monkeypatch, words, env, warned):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = invoke("quantize", "demo_vit", "--data", "d", "-o", "r", *words, env=env)
    before, _, _ = result.stderr.partition("chatter of some library")
    assert (HOURS in before) == (HOW_MANY in before) == warned


def test_a_gpu_is_what_the_default_recipe_is_for(quantized, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert HOURS not in invoke("quantize", "demo_vit", "--data", "d", "-o", "r").stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_prints_a_recipe_that_reads_back_equal(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = invoke("quantize", "demo_vit", "--recipe", preset, "--dry-run").stdout
    path = tmp_path / f"{preset}.toml"
    path.write_text(text)
    assert load_recipe(path) == load_recipe(preset)
    values = only_json(invoke("quantize", "demo_vit", "--recipe", preset, "--dry-run", "--json"))
    assert Recipe.from_dict(values) == load_recipe(preset)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("--recipe fast --wbits 3 --seed 5", " --data DIR -o RUN"),
        ("--calib-samples 8 --data 'my images' --force -o runs/a", ""),
        ("-o runs/a", " --data DIR"),
        ("", " --data DIR -o RUN"),
    ],
)
def test_after_a_dry_run_the_next_command_is_what_was_typed_without_it(words, more):
    _, _, shown = on_a_terminal("quantize", "--dry-run", "demo_vit", *shlex.split(words))
    assert shlex.split(shown.splitlines()[-1])[1:] == shlex.split(f"fimaq-tool quantize demo_vit {words}{more}")


def test_an_option_typed_twice_is_typed_twice_again():
    shown: list[list[str]] = []

    @click.command
    @click.option("--baseline", multiple=True)
    def command(baseline):
        shown.append(typed())

    CliRunner().invoke(command, ["--baseline", "a", "--baseline", "b"])
    assert shown == [["--baseline", "a", "--baseline", "b"]]


def test_without_a_recipe_the_documented_default_is_used():
    values = only_json(invoke("quantize", "demo_vit", "--dry-run", "--json"))
    assert Recipe.from_dict(values) == load_recipe(DEFAULT_RECIPE)


def test_option_beats_variable_beats_recipe_beats_default(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("seed = 1\n[weights]\nbits = 5\n[activations]\nbits = 5\n[fisher]\nrank = 2\n")
    env = {"FIMAQ_RECIPE": str(recipe), "FIMAQ_WBITS": "6", "FIMAQ_ABITS": "6"}
    values = only_json(invoke("quantize", "demo_vit", "--wbits", "7", "--dry-run", "--json", env=env))
    assert values["weights"]["bits"] == 7  # option
    assert values["activations"]["bits"] == 6  # variable
    assert (values["fisher"]["rank"], values["seed"]) == (2, 1)  # recipe
    assert values["fisher"]["samples"] == 128  # default


@pytest.mark.parametrize(
    ("variable", "table", "field", "value"),
    [
        ("FIMAQ_FISHER", "fisher", "kind", "mse"),
        ("FIMAQ_RANK", "fisher", "rank", 3),
        ("FIMAQ_CALIB_SAMPLES", "calibrate", "samples", 12),
        ("FIMAQ_FISHER_SAMPLES", "fisher", "samples", 13),
        ("FIMAQ_RECON_SAMPLES", "reconstruct", "samples", 256),
        ("FIMAQ_ITERS", "reconstruct", "iterations", 0),
        ("FIMAQ_BATCH_SIZE", "reconstruct", "batch_size", 4),
    ],
)
def test_every_recipe_option_has_a_variable(variable, table, field, value):
    values = only_json(invoke("quantize", "demo_vit", "--dry-run", "--json", env={variable: str(value)}))
    assert values[table][field] == value


def test_a_bad_variable_is_a_usage_error_that_names_the_option():
    result = invoke("quantize", "demo_vit", "--dry-run", env={"FIMAQ_WBITS": "many"})
    assert result.exit_code == 2
    assert "'--wbits'" in result.stderr


def test_no_variable_can_name_or_overwrite_an_output(quantized, tmp_path):
    result = invoke("quantize", "demo_vit", "--data", "d", env={"FIMAQ_OUT": str(tmp_path / "r")})
    assert result.exit_code == 2
    invoke("quantize", "demo_vit", "--data", "d", "-o", "r", env={"FIMAQ_FORCE": "1"})
    assert not quantized.requests[0].force


# --- export


def test_export_of_a_run(exported):
    assert only_json(invoke("export", "run", "-o", "m.onnx", "--opset", "20", "--data", "d", "--json")) == EXPORTED
    options = {"target": "ort-cpu", "opset": 20, "force": False, "images": 128, "data": "d"}
    options |= {"allow_float": False, "image": "float"}
    assert exported.calls == [("run", Path("run"), Path("m.onnx"), options)]
    assert invoke("export", "run", "-o", "m.onnx", "--allow-float").exit_code == 0
    assert exported.calls[-1][3]["allow_float"] is True


def test_export_of_a_float_model(exported):
    words = ["export", "demo_vit", "--float", "--weights", "w.pth", "-o", "m.onnx", "--force", "--json"]
    assert only_json(invoke(*words))["onnx"] == "m.onnx"
    options = {"weights": Path("w.pth"), "opset": None, "force": True, "image": "float", "dtype": "float32"}
    assert exported.calls == [("float", "demo_vit", Path("m.onnx"), options)]


def test_a_variable_meant_for_other_commands_does_not_stop_an_export(exported):
    env = {"FIMAQ_WEIGHTS": "w.pth", "FIMAQ_TARGET": "portable"}
    assert invoke("export", "run", "-o", "m.onnx", env=env).exit_code == 0
    assert invoke("export", "demo_vit", "--float", "-o", "m.onnx", env=env).exit_code == 0
    assert [call[0] for call in exported.calls] == ["run", "float"]


def test_export_says_in_words_what_was_checked(exported):
    text = invoke("export", "run", "-o", "m.onnx").stdout
    assert "m.onnx: 0.12 MB, target ort-cpu, opset 21" in text
    assert "5 integer, 0 float" in text
    assert text.splitlines()[-1] == (
        "checked on 8 images: torch and ONNX Runtime agree on the class of 87.5 % of them "
        "(torch and its own float64 copy: 75.0 %), the logits' signal-to-noise ratio is 40.2 dB, "
        "and every weight code is the run's"
    )


def test_float_kernels_of_onnx_runtime_are_not_held_against_another_runtimes_file(exported):
    exported.export_run = lambda *_, **__: EXPORTED | {"target": "qnn", "layers": {"integer": 0, "float": 50}}
    text = invoke("export", "run", "--target", "qnn", "-o", "m.onnx").stdout
    assert text.splitlines()[1] == (
        "layers in ONNX Runtime on this CPU: 0 integer, 50 float; the runtime it is for has kernels of its own"
    )


def test_export_claims_no_codes_for_a_float_model(exported):
    found = EXPORTED | {"target": "float", "parity": EXPORTED["parity"] | {"codes_equal": None}}
    exported.export_float = lambda *_, **__: found
    text = invoke("export", "demo_vit", "--float", "-o", "m.onnx").stdout
    assert "layers" not in text
    assert "checked on 8 random images: torch" in text
    assert text.splitlines()[-1].endswith("the logits' signal-to-noise ratio is 40.2 dB")


# --- evaluate


def test_evaluate_scores_a_file_and_writes_the_result(model, images, tmp_path):
    out = tmp_path / "result.json"
    result = only_json(invoke("evaluate", model, "--data", images, "-o", out, "--batch-size", 4, "--json"))
    assert (result["n"], result["provider"]) == (6, "cpu")
    assert result["top1"] == pytest.approx(100 * 5 / 6)
    wanted = "model sha256 bytes dataset preprocessing_sha256 n top1 top5 top1_interval images_per_second provider"
    assert set(wanted.split()) | {"environment"} <= result.keys()
    assert {"id", "n", "sample_ids_sha256"} <= result["dataset"].keys()
    assert json.loads(out.read_text()) == result
    assert out.with_suffix(".npz").exists()


def test_evaluate_in_words(model, images):
    text = invoke("evaluate", model, "--data", images, "--limit", 3).stdout
    assert "top-1 100.00 %" in text
    assert "3 images" in text


def test_after_a_result_comes_the_gate_and_not_inspect_again(model, images, tmp_path, monkeypatch):
    said: list[tuple[Any, ...]] = []
    for name in ("evaluate", "inspect", "report"):
        monkeypatch.setattr(f"fimaq.cli.{name}.next_command", lambda *words: said.append(words))
    out = tmp_path / "result.json"
    for words in (
        ["evaluate", model, "--data", images],
        ["inspect", model],
        ["evaluate", model, "--data", images, "-o", out],
        ["report", out, "-o", tmp_path / "r.html"],
    ):
        assert invoke(*words).exit_code == 0
    gate = ("gate", "--baseline", "FLOAT.json", "--candidate")
    assert said == [
        ("inspect", model),
        ("evaluate", model, "--data", "DIR", "-o", model.with_suffix(".json")),
        (*gate, out),
        (*gate, str(out)),
    ]


def test_evaluate_refuses_an_existing_result_before_the_work(model, images, tmp_path):
    out = tmp_path / "result.json"
    out.write_text("kept")
    result = invoke("evaluate", model, "--data", images, "-o", out)
    assert result.exit_code == 4
    assert "--force" in result.stderr
    assert out.read_text() == "kept"
    assert invoke("evaluate", model, "--data", images, "-o", out, "--force").exit_code == 0


def test_evaluate_stops_at_a_corrupt_image_or_leaves_it_out_aloud(model, images):
    (images / "red" / "broken.png").write_bytes(b"not an image")
    stopped = invoke("evaluate", model, "--data", images)
    assert stopped.exit_code == 4
    assert "Give --skip-corrupt to leave such images out" in stopped.stderr
    result = invoke("evaluate", model, "--data", images, "--skip-corrupt")
    assert result.exit_code == 0
    assert "left out 1" in result.stderr
    assert "red/broken.png" in result.stderr


# --- inspect


def test_inspect_of_a_run(run):
    result = only_json(invoke("inspect", run, "--json"))
    assert result["layers"] == [
        {
            "name": "head",
            "op": "linear",
            "weight_bits": 4,
            "activation_bits": 3,
            "granularity": "tensor",
            "kernel": None,
        }
    ]
    assert result["bytes"] == (run / "tensors.safetensors").stat().st_size
    assert "head" in invoke("inspect", run).stdout


def test_inspect_of_a_file_tells_integer_from_float(model):
    result = only_json(invoke("inspect", model, "--json"))
    head, unused = result["layers"]
    assert (head["kernel"], head["operator"]) == ("integer", "MatMulIntegerToFloat")
    assert (unused["kernel"], unused["operator"]) == ("unknown", None)
    assert result["optimized_ops"]["MatMulIntegerToFloat"] == 1
    assert result["bytes"] == model.stat().st_size
    assert result["model"] == "rgb"


def test_inspect_of_another_tools_file_has_no_layers(model):
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    result = only_json(invoke("inspect", model, "--json"))
    assert result["layers"] == []
    assert result["optimized_ops"]


def test_inspect_refuses_layers_that_are_not_a_list(model):
    proto = onnx.load(model)
    helper.set_model_props(proto, {"fimaq.layers": "{"})
    onnx.save(proto, model)
    result = invoke("inspect", model)
    assert result.exit_code == 4
    assert "fimaq.layers is not a list of layers" in result.stderr


# --- env


def test_env_tells_versions_providers_and_cpu():
    ran = subprocess.run([*TOOL, "env", "--json"], check=True, capture_output=True, text=True)
    result = json.loads(ran.stdout)
    assert result["providers"]["cpu"] == "ok"
    assert result["versions"]["fimaq-tool"]
    assert result["cpu"]["cores"] >= 1
    assert result["torch"]["usable"]


# --- demo


@pytest.fixture
def demo_parts(quantized, exported, monkeypatch):
    """Exporters that write a real file which says 3 of every dark image, and a torch model that does too."""

    def write(source, out, **options):
        exported.calls.append((str(source), out.name, options))
        write_model(out, side=32, names=list("0123456789"))
        return {**EXPORTED, "onnx": str(out)}

    exported.export_run = exported.export_float = write

    class TorchPredictor:
        def __init__(self, run, device):
            assert device == "cpu"
            self.model, self.sha256, self.bytes, self.provider, self.environment = str(run), "0", 1, "torch-cpu", {}
            self.preprocessing = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            self.image = ImageInput(self.preprocessing, "float")
            self.classes = {"wnids": None, "names": list("0123456789")}

        def __call__(self, batch):
            return np.eye(1, 10, 3, dtype=np.float32).repeat(len(batch), axis=0)

    backend: Any = types.ModuleType("fimaq.toolchain.evaluate.torch_backend")
    backend.TorchPredictor = TorchPredictor
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.delitem(sys.modules, "fimaq.toolchain.demo", raising=False)
    yield quantized, exported
    sys.modules.pop("fimaq.toolchain.demo", None)  # it holds the stand-ins


def test_demo_quantizes_both_models_both_ways_and_compares_them(demo_parts, tmp_path):
    quantized, exported = demo_parts
    result = only_json(invoke("demo", "-o", tmp_path / "demo", "--device", "cpu", "--json"))
    wanted = "float_top1 rtn_top1 fimaq_top1 onnx_top1 agreement onnx_bytes float_bytes gate"
    assert set(wanted.split()) <= result.keys()
    assert result["gate"]["verdict"] == "pass"  # float and quantized are the same file here
    assert result["agreement"] == 100
    assert 5 < result["onnx_top1"] == result["float_top1"] == result["fimaq_top1"] < 15  # the share of threes
    done = [(r.model, r.recipe.name, r.recipe.reconstruct.iterations == 0) for r in quantized.requests]
    assert done == [
        (model, name, rounded)
        for model in ("demo_vit", "demo_swin")
        for name, rounded in (("fast-w3a3+reconstruct.iterations=0", True), ("fast-w3a3", False))
    ]
    assert len(exported.calls) == 6
    assert (tmp_path / "demo" / "demo_vit-fimaq.json").exists()


def test_demo_shows_one_table_and_refuses_a_second_time(demo_parts, tmp_path):
    text = invoke("demo", "-o", tmp_path / "demo").stdout
    assert "FIMA-Q, W3/A3" in text
    assert "demo_swin" in text
    again = invoke("demo", "-o", tmp_path / "demo")
    assert again.exit_code == 4
    assert "--force to replace what the demo wrote there" in again.stderr
    assert invoke("demo", "-o", tmp_path / "demo", "--force").exit_code == 0
