"""The page, in a real browser without a screen."""

import re

import numpy as np
import pytest
from PIL import Image

KEY = "a key of more than sixteen characters"


@pytest.fixture
def opened(browser):
    """``opened(url)`` opens the page and gives it; it may complain of nothing but answers that are refusals."""
    said, pages = [], []

    def open_page(url, width=1100):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [text for text in said if "the server responded with a status of 4" not in text] == []


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def shares(toy, path):
    """Class and percent of the best five."""
    logits = toy.logits(toy.preprocessing.apply(Image.open(path))[None])[0]
    share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return [f"{toy.names[index]} {100 * share[index]:.1f} %" for index in np.argsort(-logits)[:5]]


def shown(page):
    page.wait_for_selector("#classes li")
    return [re.sub(r"\s+", " ", text) for text in page.locator("#classes li").all_inner_texts()]


def test_a_chosen_image_gets_its_classes_with_bars(server, toy, opened, picture):
    page = opened(server.url)
    page.set_input_files("#file", picture)
    assert shown(page) == shares(toy, picture)
    widths = [page.locator("#classes li i").nth(place).bounding_box()["width"] for place in range(5)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[4]


def test_a_file_that_takes_pixels_is_asked_the_same_way(bytes_server, toy, opened, picture):
    page = opened(bytes_server.url)
    page.set_input_files("#file", picture)
    assert shown(page) == shares(toy, picture)


def test_an_image_can_be_dropped(server, toy, opened, picture):
    page = opened(server.url)
    page.wait_for_selector("#facts:not(:empty)")
    content = list(picture.read_bytes())
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "picture.png", {type: "image/png"}));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    assert shown(page) == shares(toy, picture)


def test_the_models_facts_and_times_are_shown(server, opened, toy_file, picture):
    page = opened(server.url)
    page.set_input_files("#file", picture)
    shown(page)
    assert page.inner_text("#name") == "toy"
    facts = page.inner_text("#facts")
    for part in ("W4/A8", f"{toy_file.stat().st_size / 1e6:.2f} MB", "7 classes", "cpu"):
        assert part in facts
    assert re.fullmatch(r"[\d.]+ ms in the model, \d+ ms in all", page.inner_text("#timing"))


def test_what_is_no_image_is_said(server, opened, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    page = opened(server.url)
    page.wait_for_selector("#facts:not(:empty)")
    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#error:not(:empty)")
    assert "no JPEG, PNG or WebP image" in page.inner_text("#error")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(server, opened, picture, width):
    page = opened(server.url, width)
    page.set_input_files("#file", picture)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_server_with_keys_asks_for_one(start, toy, toy_file, opened, picture, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    page = opened(start(toy_file, "--keys", tmp_path / "keys").url)
    page.wait_for_selector("#key:not([hidden])")
    page.fill("#secret", KEY)
    page.click("#key button")
    page.wait_for_selector("#facts:not(:empty)")
    page.set_input_files("#file", picture)
    assert shown(page) == shares(toy, picture)


def test_one_of_several_models_can_be_chosen(start, toy, opened, picture, tmp_path):
    toy.write(tmp_path / "models" / "straight.onnx")
    toy.write(tmp_path / "models" / "upside-down.onnx", scale=-1)
    page = opened(start(tmp_path / "models").url)
    page.wait_for_selector("#facts:not(:empty)")
    page.set_input_files("#file", picture)
    assert shown(page) == shares(toy, picture)
    page.select_option("#models", "upside-down/versions/1")
    best = shares(toy, picture)[0].rsplit(" ", 2)[0]
    page.wait_for_function("best => !document.querySelector('#classes li')?.innerText.startsWith(best)", arg=best)
    assert page.inner_text("#name") == "upside-down" or not page.is_visible("#name")


def test_the_page_may_run_nothing_but_its_own_script(server):
    _, headers, content = server.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(rb"(src|href)=\"(https?:)?//", content)
