"""The page: what a run and a result hold is on it, it needs nothing else, and no name becomes markup."""

import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from fimaq.toolchain.report import write_report

NONE = "\N{EN DASH}"
NAUGHTY = """<script>alert("1")</script>'&"""

RECIPE = {
    "weights": {"bits": 4}, "activations": {"bits": 3}, "fisher": {"kind": "mse"}, "reconstruct": {"iterations": 1},
    "seed": 1,
}  # fmt: skip


def page(sources, folder):
    write_report(sources, folder / "out.html")
    return (folder / "out.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags with their attributes, table rows as lists of text, and whether every tag that was opened was closed."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, *start):
        (found,) = [row for row in self.rows if tuple(row[: len(start)]) == start]
        return found


def charts(text):
    """Each SVG as a tree; it must be XML."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


# ---------------------------------------------------------------- what is on it


def test_blocks_with_their_losses_errors_time_and_memory(new_run, tmp_path):
    read = Reader(page([new_run()], tmp_path))
    assert read.row("blocks.0") == ["blocks.0", "transformer", "2.500", "1.250", "11.5", "17.5", "3.2", "123"]
    assert read.row("head", "head") == ["head", "head", "0.500", "0.125", "21.0", "24.0", "1.5", NONE]


def test_layers_with_their_bits_weights_and_steps(new_run, tmp_path):
    read = Reader(page([new_run()], tmp_path))
    assert read.row("blocks.0.fc") == [
        "blocks.0.fc", "linear", "3,000", "4", "3", "tensor", "weight 0.25 to 0.5, input 0.125"
    ]  # fmt: skip
    assert read.row("blocks.0.qk") == ["blocks.0.qk", "matmul", NONE, NONE, "3", "head", "a 0.75, b 0.875"]


def test_provenance(new_run, tmp_path):
    run = new_run()
    read = Reader(text := page([run], tmp_path))
    assert read.row("run") == ["run", json.loads((run / "manifest.json").read_text())["sha256"]]
    assert read.row("model") == ["model", "vit_tiny_patch16_224, weights " + "a" * 64]
    assert read.row("calibration images") == ["calibration images", "2, of the set " + "b" * 64]
    assert read.row("packages") == ["packages", "torch 9.8.7"]
    recipe = json.loads(html.unescape(text.split("<pre>")[1].split("</pre>")[0]))
    assert recipe == json.loads((run / "manifest.json").read_text())["recipe"]


def test_a_fallback_is_told(new_run, tmp_path):
    assert "blocks.0, step 0: gradients were all zero" in page([new_run()], tmp_path)


def test_results_with_their_intervals(new_result, tmp_path):
    read = Reader(page([new_result()], tmp_path))
    assert read.row("result-a") == [
        "result-a", "80.00", "49.02 to 94.33", "90.00", "10", "3.45", "12.5", "cpu", "A Processor"
    ]  # fmt: skip


def test_results_on_other_images_stand_in_a_table_of_their_own(new_result, tmp_path):
    results = [new_result("a.json"), new_result("b.json", images="y"), new_result("c.json")]
    tables = page(results, tmp_path).split("<table>")[1:]
    assert [re.findall(r"<tr><th>(\w)</th>", table) for table in tables] == [["a", "c"], ["b"]]


def test_several_runs_are_compared_and_linked(new_run, tmp_path):
    read = Reader(page([new_run("run-a"), new_run("run-b", log=[])], tmp_path))
    assert read.row("run-b")[1:7] == ["demo_vit", "W4/A3", "dplr", "20000", "7", "7.5"]
    targets = {attributes["href"] for tag, attributes in read.tags if tag == "a"}
    assert targets == {"#run-1", "#run-2"}
    assert {attributes.get("id") for tag, attributes in read.tags if tag == "section"} >= {"run-1", "run-2"}


@pytest.mark.parametrize("log", [[], [{"event": "block", "name": "head"}]])
def test_a_run_of_a_version_that_logged_less_says_so(log, new_run, tmp_path):
    few = [{"name": "head", "kind": "head", "loss_first": None, "loss_last": None, "seconds": 0.0}]
    text = page([new_run(log=log, blocks=few)], tmp_path)
    assert "the version that made it did not log them" in text
    assert Reader(text).row("head", "head") == ["head", "head", NONE, NONE, NONE, NONE, "0.0", NONE]
    assert charts(text) == []


# ---------------------------------------------------------------- charts


def test_every_block_has_its_loss_curve(new_run, tmp_path):
    text = page([new_run()], tmp_path)
    titles = [chart.get("aria-label") for chart in charts(text)]
    assert titles.count("loss over step: from 4 to 1") == 2
    assert titles.count("beta over step: from 20 to 2") == 1


def test_a_curve_goes_through_its_points(new_run, tmp_path):
    """Losses 4, 2, 1 at steps 50, 100, 150: heights and widths in proportion to the axes."""
    chart = next(c for c in charts(page([new_run()], tmp_path)) if c.get("aria-label").startswith("loss"))
    (path,) = [p.get("d") for p in chart.iter("path") if p.get("class") == "curve"]
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    zero = next(float(t.get("y")) - 3.5 for t in chart.iter("text") if t.text == "0" and t.get("text-anchor") == "end")
    heights = [zero - y for _, y in points]
    assert heights == pytest.approx([4 * heights[2], 2 * heights[2], heights[2]], abs=0.2)
    assert points[2][0] - points[1][0] == pytest.approx(points[1][0] - points[0][0], abs=0.2)


def test_a_histogram_holds_its_counts_and_shows_its_grid(new_run, tmp_path):
    """75 and 25 counts in bins 20 and 30 of 48, over codes -4 to 20 of a 4-bit grid; 170 pixels wide."""
    chart = next(c for c in charts(page([new_run()], tmp_path)) if "grid 0 to 15" in c.get("aria-label"))
    assert "highest bin 75 %" in chart.get("aria-label")
    (bars,) = [p.get("d") for p in chart.iter("path") if p.get("class") == "bars"]
    tops = [float(y) for y in re.findall(r"V([\d.]+)H", bars)]
    floor = tops[0]
    high = {number: floor - y for number, y in enumerate(tops) if y != floor}
    assert high.keys() == {20, 30}
    assert high[20] == pytest.approx(3 * high[30])
    (rect,) = chart.iter("rect")
    pixels_a_code = 170 / 24
    assert float(rect.get("x")) == pytest.approx(3.5 * pixels_a_code, abs=0.1)
    assert float(rect.get("width")) == pytest.approx(16 * pixels_a_code, abs=0.1)


def test_layers_of_all_blocks_share_an_axis(new_run, tmp_path):
    """18.5 dB in one block and 16.25 in another: the same distance a decibel."""
    found = {}
    for chart in charts(page([new_run()], tmp_path)):
        if chart.get("aria-label").startswith("dB"):
            texts = [t.text for t in chart.iter("text")]
            dots = [float(c.get("cx")) for c in chart.iter("circle")]
            for label in ("fc weight", "fc input", "head weight"):
                if label in texts:
                    found[label] = dots[[t for t in texts if t.startswith(("fc", "qk", "head"))].index(label)]
    slope = (found["fc weight"] - found["fc input"]) / (16.25 - 9.75)
    assert found["head weight"] - found["fc weight"] == pytest.approx((18.5 - 16.25) * slope, abs=0.2)


def test_a_whisker_spans_the_interval(new_result, tmp_path):
    (chart,) = charts(page([new_result("a.json"), new_result("b.json", top1=50.0)], tmp_path))
    whisker = next(p.get("d") for p in chart.iter("path") if p.get("class") == "whisker")
    left, right = (float(x) for x in re.findall(r"[ML]([\d.]+) ", whisker))
    first, second = (float(c.get("cx")) for c in chart.iter("circle"))
    pixels = (first - second) / 30
    assert right - left == pytest.approx((94.33 - 49.02) * pixels, abs=0.3)
    assert first - left == pytest.approx((80 - 49.02) * pixels, abs=0.3)


# ---------------------------------------------------------------- by itself, and safe


def test_nothing_is_fetched_and_nothing_runs(new_run, new_result, tmp_path):
    text = page([new_run(), new_result()], tmp_path)
    read = Reader(text)
    assert {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"} == set()
    values = [value or "" for _, attributes in read.tags for value in attributes.values()]
    assert [value for value in values if "//" in value or value.startswith("javascript:")] == []
    assert "url(" not in text
    assert "@import" not in text
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": [{"name": NAUGHTY, "kind": NAUGHTY, "loss_first": 1, "loss_last": 1, "seconds": 1}]},
        {"device": NAUGHTY},
        {"recipe": {**RECIPE, "name": NAUGHTY}},
        {"model": {"name": NAUGHTY, "timm_name": NAUGHTY, "weights_sha256": NAUGHTY}},
        {"environment": {"cpu": {"name": NAUGHTY, "cores": 1}, "system": NAUGHTY, "versions": {NAUGHTY: NAUGHTY}}},
        {"log": [{"event": "fallback", "block": NAUGHTY, "step": 1, "reason": NAUGHTY}]},
    ],
    ids=["blocks", "device", "recipe", "model", "environment", "log"],
)  # fmt: skip
def test_markup_in_a_run_stays_text(changes, new_run, tmp_path):
    text = page([new_run(**changes)], tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert Reader(text)
    assert charts(text) is not None


def test_markup_in_the_names_of_files_stays_text(new_run, new_result, tmp_path):
    text = page([new_run("<b>&"), new_result("<i>&.json", provider=NAUGHTY)], tmp_path)
    assert {tag for tag, _ in Reader(text).tags} & {"i", "script"} == set()
    assert [c.get("aria-label") for c in charts(text)]
    assert Reader(text).row("<i>&")[7] == NAUGHTY


# ---------------------------------------------------------------- in a browser


def opened(browser, file, **how):
    context = browser.new_context(**how)
    requests, errors = [], []
    tab = context.new_page()
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: errors.append(message.text))
    tab.goto(file.as_uri())
    return SimpleNamespace(tab=tab, requests=requests, errors=errors)


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(width, browser, new_run, new_result, tmp_path):
    page([new_run("a-run-with-quite-a-long-name-" * 3), new_result()], tmp_path)
    seen = opened(browser, tmp_path / "out.html", viewport={"width": width, "height": 800})
    assert seen.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.requests == [(tmp_path / "out.html").as_uri()]
    assert seen.errors == []


def test_ink_and_paper_contrast_in_the_light_in_the_dark_and_in_print(browser, new_run, tmp_path):
    page([new_run()], tmp_path)

    def brightness(of, **media):
        seen = opened(browser, tmp_path / "out.html")
        seen.tab.emulate_media(**media)
        numbers = seen.tab.evaluate(f"getComputedStyle(document.body).{of}.match(/\\d+/g).slice(0, 3).map(Number)")
        return sum(numbers) / 3

    assert brightness("backgroundColor", color_scheme="light") > 200 > 60 > brightness("color", color_scheme="light")
    assert brightness("backgroundColor", color_scheme="dark") < 60 < 200 < brightness("color", color_scheme="dark")
    assert brightness("color", color_scheme="dark", media="print") < 60


def test_what_is_folded_away_is_printed(browser, new_run, tmp_path):
    page([new_run()], tmp_path)
    seen = opened(browser, tmp_path / "out.html")
    visible = "document.querySelector('details .charts svg').checkVisibility()"
    assert seen.tab.evaluate(visible) is False
    seen.tab.emulate_media(media="print")
    assert seen.tab.evaluate(visible) is True
