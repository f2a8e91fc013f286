"""Labels files: every form that is accepted, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.errors import InputError

WNIDS = [f"n{index:08d}" for index in range(10, 22)]
CLASSES = {"wnids": WNIDS, "names": [f"name {index}" for index in range(12)]}
NO_WNIDS = {"wnids": None, "names": CLASSES["names"]}
DEVKIT_NAMES = [f"ILSVRC2012_val_{index:08d}.JPEG" for index in range(1, 6)]


def flat(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    return root


def labels(tmp_path: Path, text: str, *names: str, classes: dict | None = CLASSES) -> dict[str, int]:
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    images = open_dataset(
        flat(tmp_path / "images", *(names or ("a.png", "b.png"))),
        labels_file=tmp_path / "labels.txt",
        classes=classes,
    )
    assert "labels.txt" in images.label_source
    return dict(zip(images.sample_ids, images.labels, strict=True))


def meta_mat(path: Path, wnids: list[str], compress: bool = True) -> Path:
    """A table as the devkit's, written by an independent writer of the format."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((len(wnids), 1), dtype=[(name, object) for name in fields])
    for index, wnid in enumerate(wnids):
        children = np.zeros((0, 0)) if index % 2 else np.array([[3.0, 4.0]])
        synsets[index, 0] = (float(index + 1), wnid, "kit fox, Vulpés", "a fox", 0.0, children, 2.0)
    savemat(path, {"synsets": synsets}, do_compression=compress)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a.png 3\nb.png 0\n",
        "a.png\t3\nb.png\t0",
        "a.png,3\nb.png,0\n",
        "filename,label\na.png, 3\nb.png, 0\n",
        "# a remark\n\nb.png 0\n  a.png   3  \n",
        "\ufeffa.png 3\r\nb.png 0\r\n",
        f"a.png {WNIDS[3]}\nb.png {WNIDS[0]}\n",
        f"ImageId,PredictionString\na,{WNIDS[3]} 85 131 499 254\nb,{WNIDS[0]} 1 2 3 4 {WNIDS[0]} 5 6 7 8\n",
        "./a.png 3\nb.png 0\n",
        "a 3\nb 0\n",
    ],
)
def test_accepted_forms(tmp_path, text):
    assert labels(tmp_path, text) == {"a.png": 3, "b.png": 0}


def test_names_with_spaces_and_quotes(tmp_path):
    assert labels(tmp_path, 'my cat.png 3\n"x, y.png",1\n', "my cat.png", "x, y.png") == {
        "my cat.png": 3,
        "x, y.png": 1,
    }


def test_a_file_wins_over_class_folders_and_names_paths(tmp_path):
    got = labels(tmp_path, f"{WNIDS[0]}/x.png 5\n{WNIDS[1]}/x.png 6\n", f"{WNIDS[0]}/x.png", f"{WNIDS[1]}/x.png")
    assert list(got.values()) == [5, 6]


def test_a_file_name_that_two_images_share_names_neither(tmp_path):
    with pytest.raises(InputError, match="names none of the 2 images"):
        labels(tmp_path, "x.png 5\n", "p/x.png", "q/x.png")


def test_a_file_for_the_whole_set_serves_a_part_of_it_and_says_so(tmp_path):
    (tmp_path / "labels.txt").write_text("a.png 1\nb.png 2\nc.png 3\n")
    images = open_dataset(flat(tmp_path / "i", "b.png"), labels_file=tmp_path / "labels.txt", classes=CLASSES)
    assert images.labels == (2,)
    assert "1 of its 3 names used" in images.label_source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a.png 1\n", r"no label for 1 of 2 images, the first b\.png"),
        ("x.png 1\ny.png 1\n", "names none of the 2 images"),
        ("a.png 12\nb.png 0\n", "line 1: label 12 is out of range; wanted 0 to 11"),
        ("a.png 1\nb.png -1\n", "line 2"),
        ("a.png 1\nb.png\n", "line 2"),
        ("a.png 1\nb.png,\n", "line 2"),
        ("a.png 1\nb.png tabby cat\n", "line 2"),
        ("a.png 1\na.png 2\nb.png 0\n", "line 2: a.png has label 2 here and 1 above"),
        ("a.png n99999999\nb.png 0\n", "none of the model's 12 classes"),
    ],
)
def test_refused_files(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        labels(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    root = flat(tmp_path / "i", "a.png")
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(root, labels_file=tmp_path / "nothing.txt", classes=CLASSES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(root, labels_file=tmp_path / "binary", classes=CLASSES)


def test_wnids_need_a_model_that_knows_them(tmp_path):
    with pytest.raises(InputError, match="the model carries no wnids"):
        labels(tmp_path, f"a.png {WNIDS[3]}\nb.png {WNIDS[0]}\n", classes=NO_WNIDS)


# The devkit's list


@pytest.mark.parametrize("compress", [True, False])
def test_devkit_ids_are_translated_and_are_not_the_models_order(tmp_path, compress):
    # id 1 is the model's class 4, id 2 its class 9, ...
    meta_mat(tmp_path / "meta.mat", [WNIDS[4], WNIDS[9], WNIDS[0], WNIDS[11]], compress)
    got = labels(tmp_path, "2\n1\n4\n3\n1\n", *DEVKIT_NAMES)
    assert [got[name] for name in DEVKIT_NAMES] == [9, 4, 11, 0, 4]


def test_a_part_of_the_devkit_images_is_found_by_number(tmp_path):
    meta_mat(tmp_path / "meta.mat", [WNIDS[4], WNIDS[9], WNIDS[0], WNIDS[11]])
    assert labels(tmp_path, "2\n1\n4\n3\n1\n", DEVKIT_NAMES[3], DEVKIT_NAMES[1]) == {
        DEVKIT_NAMES[1]: 4,
        DEVKIT_NAMES[3]: 0,
    }


def test_other_names_are_taken_in_file_name_order_where_the_count_fits(tmp_path):
    meta_mat(tmp_path / "meta.mat", [WNIDS[4], WNIDS[9]])
    assert labels(tmp_path, "2\n1\n", "q/a.png", "p/b.png") == {"q/a.png": 9, "p/b.png": 4}
    with pytest.raises(InputError, match="a list of 3 numbers for 2 images"):
        labels(tmp_path, "2\n1\n1\n", "q/a.png", "p/b.png")


def test_a_devkit_list_is_refused_rather_than_guessed(tmp_path):
    with pytest.raises(InputError, match=r"meta\.mat is not there.*Copy it beside the list"):
        labels(tmp_path, "2\n1\n", "a.png", "b.png")
    with pytest.raises(InputError, match="no wnids to translate them"):
        labels(tmp_path, "2\n1\n", "a.png", "b.png", classes=NO_WNIDS)
    meta_mat(tmp_path / "meta.mat", ["n77777777", WNIDS[0]])
    with pytest.raises(InputError, match="id 1, whose wnid is none"):
        labels(tmp_path, "2\n1\n", "a.png", "b.png")
    with pytest.raises(InputError, match="id 0"):
        labels(tmp_path, "2\n0\n", "a.png", "b.png")


@pytest.mark.parametrize("content", [b"", b"MATLAB 7.3 " * 40, b"\0" * 126 + b"IM" + b"\x0f\0\0\0\x05\0\0\0notzl"])
def test_a_meta_mat_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "meta.mat").write_bytes(content)
    with pytest.raises(InputError, match="is not the ILSVRC2012 devkit's"):
        labels(tmp_path, "2\n1\n", "a.png", "b.png")


def test_a_mat_file_with_another_table_is_refused(tmp_path):
    savemat(tmp_path / "meta.mat", {"other": np.zeros(3), "synsets": {"WNID": "n1"}})
    with pytest.raises(InputError, match="is not the ILSVRC2012 devkit's"):
        labels(tmp_path, "2\n1\n", "a.png", "b.png")
