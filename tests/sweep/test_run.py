"""A sweep in a world where a run takes no time: what is made, left out, gone on with, tried again and told."""

import json
import re
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fimaq.cli.main import cli
from fimaq.toolchain.errors import EnvironmentProblem, InputError, UsageError
from fimaq.toolchain.sweep.pareto import front
from fimaq.toolchain.sweep.plan import load_plan
from fimaq.toolchain.sweep.run import sweep

TWO = '[[run]]\nmodel = ["a", "b"]\nrecipe = "fast-w4a4"\n'
BITS = '[[run]]\nmodel = "a"\nrecipe = ["float", "fast-w8a8", "fast-w4a4", "fast-w3a3"]\n'
STEPS = ["quantize", "export", "evaluate"]


@pytest.fixture
def swept(plan, folder, world):
    def run(text=TWO, **how):
        return sweep(load_plan(plan(text)), folder / "out", device="cpu", **how)

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- what is made


def test_each_run_is_quantized_exported_and_evaluated(swept, world, folder):
    result = swept()
    assert world.calls == [(step, model) for model in "ab" for step in STEPS]
    assert result["failed"] == 0
    first = rows(folder)[0]
    assert first["config"] == {"model": "a", "recipe": "fast-w4a4"}
    assert first["command"] == "fimaq-tool quantize a --recipe fast-w4a4"
    assert (first["wbits"], first["abits"], first["fisher"], first["seed"]) == (4, 4, "dplr", 0)
    assert (first["bytes"], first["n"], first["top1"], first["seconds"]) == (4_000_000, 100, 80.0, {"total": 12.4})
    assert (world.requests[0].weights, world.requests[0].data) == (
        folder / "weights" / "a.safetensors", str(folder / "calib")
    )  # fmt: skip


def test_a_float_model_is_not_quantized(swept, world, folder):
    swept('[[run]]\nmodel = "a"\nrecipe = "float"\n')
    assert world.calls == [("export", "a"), ("evaluate", "a")]
    assert rows(folder)[0]["wbits"] is None


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"device": "cuda:9"}, EnvironmentProblem, "device cuda:9 was asked for"),
        ({"folder": "mine.toml"}, InputError, "mine.toml is a file; wanted the folder of the sweep"),
        ({"launched": True}, UsageError, "a sweep is one process"),
    ],
)
def test_what_no_run_could_do_is_refused_before_the_first(how, error, message, plan, folder, world, monkeypatch):
    if how.get("launched"):
        ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
        for name, value in (ranks | {"MASTER_ADDR": "localhost"}).items():
            monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        sweep(load_plan(plan(TWO)), folder / how.get("folder", "out"), device=how.get("device", "cpu"))
    assert world.calls == []


def test_the_table(swept, folder):
    swept(BITS)
    lines = (folder / "out" / "results.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1] for row in cells[2:]] == ["float", "W8/A8", "W4/A4", "W3/A3"]
    assert cells[4] == [
        "a", "W4/A4", "dplr", "0", "80.00 (71.1 to 86.7)", "99.0 / 98.0", "12", "4.00",
        "`fimaq-tool quantize a --recipe fast-w4a4`",
    ]  # fmt: skip


def test_files_are_benched_together_when_asked(swept, world, folder):
    result = swept(BITS, timed=True)
    assert [len(names) for names in world.benched] == [4]
    assert [run["images_per_second"] for run in result["runs"]] == [100, 200, 300, 400]
    assert "images/s" in (folder / "out" / "results.md").read_text()
    assert [path.rsplit("/", 1)[1] for path in result["plots"]] == ["pareto-bytes.svg", "pareto-speed.svg"]


def test_speeds_stay_while_the_files_do(swept, world, folder):
    swept(BITS, timed=True)
    again = swept(BITS)
    assert [run["images_per_second"] for run in again["runs"]] == [100, 200, 300, 400]
    assert "images/s" in (folder / "out" / "results.md").read_text()
    assert len(again["plots"]) == 2
    file = next((folder / "out").glob("a-float-*.onnx"))
    file.write_text("another")
    assert [run["images_per_second"] for run in swept(BITS)["runs"]] == [None] * 4
    assert len(world.benched) == 1


@pytest.mark.parametrize("name", ["calib", "val"])
def test_missing_images_are_named_by_their_option(name, plan, folder, world):
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(InputError, match=rf"^{name} images \(--{name}, or {name} in the plan\): "):
        sweep(load_plan(plan(TWO)), folder / "out")


# ---------------------------------------------------------------- going on


def test_what_is_done_is_left_out(swept, world, folder):
    swept()
    world.calls.clear()
    again = swept(TWO + '[[run]]\nmodel = "c"\nrecipe = "fast-w4a4"\n')
    assert {model for _, model in world.calls} == {"c"}
    assert [run["config"]["model"] for run in again["runs"]] == ["a", "b", "c"]
    assert len(rows(folder)) == 3


@pytest.mark.parametrize("change", ["weights/a.safetensors", "val/0/new.png", "calib/0/new.png"])
def test_changed_weights_and_images_are_another_run(change, swept, world, folder):
    swept()
    world.calls.clear()
    (folder / change).write_bytes(b"other")
    swept()
    assert {model for _, model in world.calls} == ({"a"} if change.startswith("weights") else {"a", "b"})


@pytest.mark.parametrize("error", [InputError("no such model. Give another"), RuntimeError("a bug"), MemoryError()])
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_run_is_told_and_the_next_goes_on(step, error, swept, world, folder):
    world.fail[step, "a"] = error
    result = swept()
    assert result["failed"] == 1
    failed, good = rows(folder)
    assert failed["error"]["type"] == type(error).__name__
    assert good["top1"] == 80.0
    assert f"* `{failed['command']}`: {error or 'MemoryError'}" in (folder / "out" / "results.md").read_text()


def test_a_failed_run_is_tried_again_from_where_it_failed(swept, world, folder):
    world.fail["export", "a"] = InputError("no space")
    swept()
    world.fail.clear()
    world.calls.clear()
    assert swept()["failed"] == 0
    assert world.calls == [("export", "a"), ("evaluate", "a")]  # its run folder is whole
    assert [("error" in row) for row in rows(folder)] == [True, False, False]


def test_an_interrupted_sweep_goes_on(swept, world, folder):
    world.fail["quantize", "b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        swept()
    assert len(rows(folder)) == 1
    (run,) = [path for path in (folder / "out").iterdir() if path.is_dir()]
    unfinished = folder / "out" / f".{world_name(run, 'b', swept, world)}.unfinished"
    unfinished.mkdir()
    (unfinished / "blocks.0.safetensors").write_bytes(b"")
    world.calls.clear()
    world.fail.clear()
    assert swept()["failed"] == 0
    assert {model for _, model in world.calls} == {"b"}
    assert world.requests[-1].resume is True


def world_name(run, model, swept, world):
    """The name the run of another model will have: asked of a run that fails before it is begun."""
    world.fail["quantize", model] = InputError("not yet")
    return swept()["runs"][1]["run"]


def test_a_line_that_was_cut_off_costs_its_run_only(swept, world, folder):
    swept()
    path = folder / "out" / "results.jsonl"
    path.write_text(path.read_text()[:-40])
    world.calls.clear()
    assert swept()["failed"] == 0
    assert world.calls == [("export", "b"), ("evaluate", "b")]
    assert len(rows(folder)) == 2


def test_results_that_are_none_are_refused(swept, folder):
    (folder / "out").mkdir()
    (folder / "out" / "results.jsonl").write_text('{"a": 1}\n{}\n')
    with pytest.raises(InputError, match=r"results.jsonl, line 1 is no row of `fimaq-tool sweep` \(KeyError"):
        swept()


def test_data_that_are_not_there_are_refused_at_once(plan, folder, world):
    with pytest.raises(InputError, match="nowhere"):
        sweep(load_plan(plan(TWO), val="nowhere"), folder / "out")
    assert not (folder / "out").exists()


# ---------------------------------------------------------------- the plot


PLACES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(PLACES)
def test_the_front_is_what_none_beats(places):
    best = front(places)

    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    assert best
    for number, place in enumerate(places):
        assert (number in best) is not any(beats(other, place) for other in places)


def test_the_plot_names_the_front_and_places_every_run(swept, folder):
    """32, 8, 4 and 3 MB at 90, 89, 80 and 50 %: all are on the front by size."""
    swept(BITS)
    chart = ElementTree.parse(folder / "out" / "pareto-bytes.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    dots = [(float(c.get("cx")), float(c.get("cy")), c.get("class")) for c in chart.iter(f"{name}circle")]
    assert [kind for _, _, kind in dots] == ["filled"] * 4
    x, y = [place for place, _, _ in dots], [place for _, place, _ in dots]
    assert (x[0] - x[1]) / (x[1] - x[2]) == pytest.approx((32 - 8) / (8 - 4), rel=0.02)
    assert (y[3] - y[0]) / (y[2] - y[0]) == pytest.approx((90 - 50) / (90 - 80), rel=0.02)
    texts = [text.text for text in chart.iter(f"{name}text")]
    assert {"float", "W8/A8", "W4/A4", "W3/A3", "file, MB", "top-1, %"} <= set(texts)


def test_more_speed_is_better(swept, folder):
    """100, 200, 300, 400 images a second at 90, 89, 80, 50 %: all on the front; by size order it would be one."""
    swept(BITS, timed=True)
    content = (folder / "out" / "pareto-speed.svg").read_text()
    assert len(re.findall('class="filled"', content)) == 4


def test_markup_in_a_name_stays_text(swept, folder):
    swept('[[run]]\nmodel = ["<script>|", "b"]\nrecipe = "fast-w4a4"\n')
    assert "<script" not in (folder / "out" / "pareto-bytes.svg").read_text()
    assert "<script>\\|" in (folder / "out" / "results.md").read_text()


# ---------------------------------------------------------------- the command


def command(*words):
    return CliRunner().invoke(cli, ["sweep", *map(str, words)])


def test_the_command_ends_with_0_where_every_run_is_done(plan, folder, world):
    done = command(plan(TWO), "-o", folder / "out", "--device", "cpu", "--json")
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert [run["config"]["model"] for run in result["runs"]] == ["a", "b"]
    assert (result["failed"], result["table"]) == (0, str(folder / "out" / "results.md"))


def test_the_command_ends_with_4_where_one_failed(plan, folder, world):
    world.fail["export", "a"] = InputError("no")
    done = command(plan(TWO), "-o", folder / "out", "--json")
    assert done.exit_code == 4
    assert json.loads(done.stdout)["failed"] == 1
    assert "1 of 2 runs failed" in done.stderr


def test_a_plan_that_cannot_be_meant_ends_with_2(plan, folder, world):
    done = command(plan("[[run]]\nmodel = 1\n"), "-o", folder / "out")
    assert (done.exit_code, (folder / "out").exists()) == (2, False)
    assert world.calls == []
