"""Data sets: labels, order, identity, damage; and which images calibrate."""

import contextlib
import hashlib
import io
import os
import random
import sys
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from fimaq.toolchain.data import ClassList, ImageSet, calibration_sample, decode_rgb, open_dataset
from fimaq.toolchain.data import factory as factory_module
from fimaq.toolchain.data.factory import Stream, open_factory
from fimaq.toolchain.errors import EnvironmentProblem, InputError, UsageError

WNIDS = [f"n{index:08d}" for index in range(10, 22)]
CLASSES = {"wnids": WNIDS, "names": [f"name {index}" for index in range(12)]}
LETTERS = {"wnids": None, "names": list("abcd")}


def png(value: int) -> bytes:
    """An image that differs for every value."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def corner(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))


# Class folders


def test_a_wnid_folder_is_its_index_among_all_classes_not_among_the_folders(tmp_path):
    images = open_dataset(
        fill(tmp_path, f"{WNIDS[7]}/b.png", f"{WNIDS[2]}/a.jpg", f"{WNIDS[7]}/c.png"), classes=CLASSES
    )
    assert images.sample_ids == (f"{WNIDS[2]}/a.jpg", f"{WNIDS[7]}/b.png", f"{WNIDS[7]}/c.png")
    assert images.labels == (2, 7, 7)
    assert "wnid" in images.label_source
    assert corner(images.load(1)) == (0, 0, 7)


def test_folders_named_by_class_name(tmp_path):
    images = open_dataset(fill(tmp_path, "c/1.png", "a/1.png"), classes=LETTERS)
    assert images.labels == (0, 2)
    assert "class name" in images.label_source


def test_a_name_two_classes_share_gives_no_label(tmp_path):
    classes = {"wnids": None, "names": ["crane", "ship", "crane"]}
    fill(tmp_path, "crane/1.png")
    with pytest.raises(InputError, match="cannot tell the label"):
        open_dataset(tmp_path, classes=classes)


def test_as_many_folders_as_classes_are_in_natural_order_empty_ones_counted(tmp_path):
    fill(tmp_path, "class10/x.png", "class9/x.png", "class2/x.png")
    (tmp_path / "class1").mkdir()
    images = open_dataset(tmp_path, classes=LETTERS)
    assert dict(zip(images.sample_ids, images.labels, strict=True)) == {
        "class2/x.png": 1,
        "class9/x.png": 2,
        "class10/x.png": 3,
    }
    assert "order" in images.label_source


def test_an_empty_folder_beside_wnid_folders_does_not_matter(tmp_path):
    fill(tmp_path, f"{WNIDS[3]}/x.png")
    (tmp_path / "notes").mkdir()
    assert open_dataset(tmp_path, classes=CLASSES).labels == (3,)


def test_too_few_folders_of_unknown_name_are_refused(tmp_path):
    fill(tmp_path, "cat/x.png", "dog/x.png")
    with pytest.raises(InputError, match=r"2 folders \(cat, dog\).*exactly 12 folders.*--labels"):
        open_dataset(tmp_path, classes=CLASSES)


def test_one_unknown_folder_among_wnids_is_refused(tmp_path):
    fill(tmp_path, f"{WNIDS[3]}/x.png", "extra/x.png")
    with pytest.raises(InputError, match=r"1 are not \(extra\)"):
        open_dataset(tmp_path, classes=CLASSES)


def test_the_folder_above_the_splits_is_refused_by_name(tmp_path):
    fill(tmp_path, f"train/{WNIDS[0]}/x.png", f"val/{WNIDS[0]}/x.png")
    with pytest.raises(InputError, match=r"train, val.*such as .*/val"):
        open_dataset(tmp_path, classes=CLASSES)


def test_deeper_folders_belong_to_the_class_at_the_top(tmp_path):
    fill(tmp_path, f"{WNIDS[5]}/images/x.png")
    assert open_dataset(tmp_path, classes=CLASSES).labels == (5,)


def test_without_a_class_list_folders_are_numbered_and_it_says_so(tmp_path):
    images = open_dataset(fill(tmp_path, "b/x.png", "a/x.png"))
    assert images.labels == (0, 1)
    assert "no class list" in images.label_source


# What is in a folder


def test_what_is_no_image_is_passed_over_and_links_are_followed(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "1.PNG")
    root = fill(tmp_path / "root", "a/1.png", "a/._1.png", ".hidden/2.png")
    (root / "a" / "README.txt").write_text("no image")
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to(root)  # a link back up must not be walked for ever
    assert open_dataset(root).sample_ids == ("a/1.png", "b/1.PNG", "c/1.PNG")


@pytest.mark.parametrize("listed", [1, -1])
def test_order_is_not_the_file_systems(tmp_path, monkeypatch, listed):
    root = fill(tmp_path, *(f"{letter}/{index}.png" for letter in "abcd" for index in range(5)))
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name)[::listed]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Shuffled)
    images = open_dataset(root, classes=LETTERS)
    assert list(images.sample_ids) == sorted(images.sample_ids)
    assert images.labels == tuple(index // 5 for index in range(20))


def test_missing_empty_and_unreadable_folders(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="not there"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="no images"):
        open_dataset(tmp_path)
    (tmp_path / "x.txt").write_text("no image")
    with pytest.raises(InputError, match="no images"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        open_dataset(tmp_path / "x.txt")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        open_dataset(tmp_path)


# Damage


@pytest.mark.parametrize("damage", [lambda data: data[:-25], lambda data: b"", lambda data: b"plain text"])
def test_a_damaged_image_is_named(tmp_path, damage):
    root = fill(tmp_path, "a/good.png", "a/bad.png")
    (root / "a" / "bad.png").write_bytes(damage(png(1)))
    images = open_dataset(root)
    with pytest.raises(InputError, match=r"a/bad\.png"):
        images.load(0)
    assert corner(images.load(1)) == (0, 0, 7)


def test_a_file_that_went_away_is_named(tmp_path):
    images = open_dataset(fill(tmp_path, "a/x.png"))
    (tmp_path / "a" / "x.png").unlink()
    with pytest.raises(InputError, match=r"a/x\.png .* cannot be read"):
        images.load(0)


def test_what_is_no_image_is_said_without_the_innards_of_a_buffer():
    with pytest.raises(InputError) as refused:
        decode_rgb(b"plain text", "a/x.png")
    assert str(refused.value) == (
        "image a/x.png cannot be decoded (no image format that Pillow knows; 10 bytes). Replace or remove it."
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd sizes and metadata as it fails
def test_damage_of_any_kind_is_an_input_error_or_an_image(kind):
    rng = random.Random(kind)
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(buffer, kind)
    for _ in range(100):
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        with contextlib.suppress(InputError):
            assert decode_rgb(bytes(data), "x").mode == "RGB"


@pytest.mark.filterwarnings("ignore")
def test_a_palettes_transparency_without_the_palette_is_an_input_error():
    buffer = io.BytesIO()
    Image.effect_noise((9, 7), 90).convert("P").save(buffer, "PNG", transparency=3)
    content = buffer.getvalue()
    at = content.index(b"PLTE") - 4
    without = content[:at] + content[at + 12 + int.from_bytes(content[at : at + 4]) :]
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_rgb(without, "x")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_every_mode_is_loaded_as_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    (tmp_path / "a").mkdir()
    original = Image.effect_noise((9, 7), 90).convert("RGB").convert(mode)
    original.save(tmp_path / "a" / f"x.{suffix}")
    loaded = open_dataset(tmp_path).load(0)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(original.convert("RGB")))


# Identity


def test_the_id_is_of_the_content_not_the_place(tmp_path):
    names = ("a/1.png", "b/2.png")
    first, second = (open_dataset(fill(tmp_path / place, *names)) for place in ("here", "there"))
    assert first.id == second.id
    assert first.sample_ids_sha256 == second.sample_ids_sha256
    (tmp_path / "there" / "a" / "1.png").write_bytes(png(99))
    changed = open_dataset(tmp_path / "there")
    assert changed.id != first.id
    assert changed.sample_ids_sha256 == first.sample_ids_sha256


def test_labels_enter_the_id_and_renaming_changes_both_hashes(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    plain = open_dataset(tmp_path)
    other_labels = open_dataset(tmp_path, classes={"wnids": None, "names": ["b", "a"]})
    assert other_labels.labels == (1, 0)
    assert other_labels.id != plain.id
    assert other_labels.sample_ids_sha256 == plain.sample_ids_sha256
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "3.png")
    assert open_dataset(tmp_path).sample_ids_sha256 != plain.sample_ids_sha256


def test_loading_does_not_change_the_id_and_saves_reading_again(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png")
    expected = open_dataset(tmp_path).id
    images = open_dataset(tmp_path)
    for index in range(2):
        images.load(index)
    (tmp_path / "a" / "1.png").unlink()
    assert images.id == expected


def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "a/x.png"))
    with pytest.raises(UsageError, match="--data is empty; wanted a folder of images"):
        open_dataset("")


def test_limit_spreads_over_the_set(tmp_path):
    fill(tmp_path, *(f"{letter}/{index}.png" for letter in "abcd" for index in range(5)))
    images = open_dataset(tmp_path, classes=LETTERS, limit=8)
    assert Counter(images.labels) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert images.load(7) is not None
    assert len(open_dataset(tmp_path, limit=1000)) == 20
    for limit in (0, -1):
        with pytest.raises(UsageError, match="--limit"):
            open_dataset(tmp_path, limit=limit)


def test_an_image_set_checks_itself():
    with pytest.raises(InputError, match="no images"):
        ImageSet("x", (), (), "", lambda index: b"")
    with pytest.raises(InputError, match="same name"):
        ImageSet("x", ("a", "a"), (0, 0), "", lambda index: b"")
    with pytest.raises(InputError, match="1 labels for 2"):
        ImageSet("x", ("a", "b"), (0,), "", lambda index: b"")


@pytest.mark.parametrize(
    "classes", [{}, {"names": []}, {"names": "abc"}, {"names": [1]}, {"names": ["a", "b"], "wnids": ["n1", "n1"]}]
)
def test_a_class_list_checks_itself(classes):
    with pytest.raises(InputError, match="Re-export"):
        ClassList.from_json(classes)


# Without labels


def test_images_without_labels_may_calibrate_but_not_score(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    with pytest.raises(InputError, match=r"2 of 2 images lie in no class folder.*--labels"):
        open_dataset(tmp_path, classes=CLASSES)
    images = open_dataset(tmp_path, classes=CLASSES, require_labels=False)
    assert images.labels is None
    assert "no class folder" in images.label_source
    assert images.take(1).labels is None
    assert len(images.id) == 64


# Tar files


def test_a_tar_has_the_labels_its_folder_would_have(tmp_path):
    names = (f"{WNIDS[7]}/b.png", f"{WNIDS[2]}/a.png")
    folder = open_dataset(fill(tmp_path / "folder", *names), classes=CLASSES)
    members = {f"./{name}": (tmp_path / "folder" / name).read_bytes() for name in names}
    packed = open_dataset(tar(tmp_path / "set.tar", members), classes=CLASSES)
    assert packed.labels == folder.labels == (2, 7)
    assert packed.id == folder.id


def test_a_tar_with_everything_below_one_folder_and_tars_of_one_class_each(tmp_path):
    wrapped = tar(tmp_path / "wrapped.tar", {f"val/{WNIDS[1]}/x.png": png(1), f"val/{WNIDS[4]}/y.png": png(2)})
    assert open_dataset(wrapped, classes=CLASSES).labels == (1, 4)
    inner = {
        f"{wnid}.tar": tar(
            tmp_path / f"{wnid}.tar", {f"{wnid}_{i}.png": png(10 * at + i) for i in range(3)}
        ).read_bytes()
        for at, wnid in enumerate(WNIDS[:4])
    }
    images = open_dataset(tar(tmp_path / "train.tar", inner), classes=CLASSES)
    assert images.labels == tuple(index // 3 for index in range(12))
    with ThreadPoolExecutor(4) as pool:
        corners = list(pool.map(lambda index: corner(images.load(index)), range(12)))
    assert corners == [(10 * at + i, 0, 7) for at in range(4) for i in range(3)]


def test_tars_that_cannot_be_used(tmp_path):
    zipped = tar(tmp_path / "zipped.tar", {"a/x.png": png(0)}, "w:gz")
    (tmp_path / "noise.tar").write_bytes(b"no tar at all" * 100)
    for path in (zipped, tmp_path / "noise.tar"):
        with pytest.raises(InputError, match="cannot be read as a tar"):
            open_dataset(path)
    with pytest.raises(InputError, match="no images"):
        open_dataset(tar(tmp_path / "text.tar", {"x.txt": b"text"}))


def test_a_tar_cut_short_after_it_was_listed_is_reported(tmp_path):
    path = tar(tmp_path / "set.tar", {"a/x.png": png(0), "b/y.png": png(1)})
    images = open_dataset(path)
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(InputError, match=r"b/y\.png"):
        images.load(1)


# timm's factory


class FakeStream:
    """What timm's iterable data sets are: run through, never indexed."""

    def __init__(self, targets):
        self.targets, self.passes = targets, 0

    def __iter__(self):
        self.passes += 1
        for value, target in enumerate(self.targets):
            yield Image.new("RGB", (4, 3), (value, 0, 7)), target


def fake_factory(monkeypatch, dataset):
    asked = []
    monkeypatch.setattr(factory_module, "_create", lambda *args: asked.append(args) or dataset)
    return asked


def test_a_streamed_set_is_read_in_one_more_pass_by_many_threads(monkeypatch):
    stream = FakeStream([index % 4 for index in range(40)])
    asked = fake_factory(monkeypatch, stream)
    images = open_dataset("wds//data/shards:val", classes=LETTERS)
    assert asked == [("wds", "/data/shards", "val", "wds//data/shards:val")]
    assert images.labels == tuple(index % 4 for index in range(40))
    assert images.sample_ids[3] == "val/00000003"
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(images.load, range(40)))
    assert [corner(image)[0] for image in loaded] == list(range(40))
    assert stream.passes == 2
    assert corner(images.load(5))[0] == 5  # going back costs a pass
    assert stream.passes == 3


def test_a_stream_keeps_a_window_not_the_set():
    stream = Stream(lambda: iter((Image.new("RGB", (1, 1)), 0) for _ in range(2000)))
    stream.read(1999)
    assert len(stream._kept) <= Stream.WINDOW
    with pytest.raises(OSError, match="ended before"):
        stream.read(2000)


def test_hugging_face_sets_are_read_by_index(monkeypatch):
    class Reader:
        def __getitem__(self, index):
            return io.BytesIO(png(index)), index % 3

        def iter_targets(self):
            return (np.int64(index % 3) for index in range(9))

    class Dataset:
        reader = Reader()

    asked = fake_factory(monkeypatch, Dataset())
    images = open_dataset("hfds/owner/name", classes=LETTERS, limit=3)
    assert asked == [("hfds", "owner/name", "validation", "hfds/owner/name")]
    assert images.sample_ids == ("validation/00000000", "validation/00000003", "validation/00000006")
    assert corner(images.load(2)) == (6, 0, 7)


@pytest.mark.parametrize("targets", [[0, -1], [0, None], [0, [1, 2]]])
def test_labels_that_are_not_one_number_score_nothing(monkeypatch, targets):
    fake_factory(monkeypatch, FakeStream(targets))
    with pytest.raises(InputError, match="sample 1 has label"):
        open_factory("wds/x", None, require_labels=True)
    assert open_factory("wds/x", None, require_labels=False).labels is None


def test_labels_beyond_the_models_classes_are_refused(monkeypatch):
    fake_factory(monkeypatch, FakeStream([0, 4]))
    with pytest.raises(InputError, match="label 4 and the model 4 classes"):
        open_dataset("wds/x", classes=LETTERS)


def test_a_missing_package_is_an_environment_problem_and_nothing_is_printed(monkeypatch, capsys):
    def missing(name):
        sys.stdout.write("Please install it")
        raise ImportError("No module named 'datasets'")

    monkeypatch.setattr(factory_module.importlib, "import_module", missing)
    with pytest.raises(EnvironmentProblem, match="pip install timm datasets"):
        open_dataset("hfds/owner/name")
    assert capsys.readouterr().out == ""


def test_a_set_that_cannot_be_opened_is_an_input_error(tmp_path, monkeypatch):
    class Module:
        @staticmethod
        def create_dataset(*args, **kwargs):
            raise ValueError("Unknown split")

    monkeypatch.setattr(factory_module.importlib, "import_module", lambda name: Module)
    with pytest.raises(InputError, match=r"Unknown split.*PREFIX/NAME\[:SPLIT\]"):
        open_dataset("hfds/owner/name:nosuch")
    with pytest.raises(UsageError, match="--labels"):
        open_dataset("hfds/owner/name", labels_file=tmp_path / "x")


# Calibration


def shuffled(images: ImageSet, seed: int) -> ImageSet:
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    return images.subset(order)


@pytest.fixture
def uneven(tmp_path):
    """Classes of 9, 3 and 1 images."""
    names = [f"a/{i}.png" for i in range(9)] + [f"b/{i}.png" for i in range(3)] + ["c/0.png"]
    return open_dataset(fill(tmp_path, *names))


def chosen_ids(images: ImageSet, n: int, seed: int) -> list[str]:
    return [images.sample_ids[index] for index in calibration_sample(images, n, seed)]


def test_calibration_is_balanced_as_far_as_the_classes_reach(uneven):
    for n, expected in ((3, {"a": 1, "b": 1, "c": 1}), (5, {"a": 2, "b": 2, "c": 1}), (9, {"a": 5, "b": 3, "c": 1})):
        picked = chosen_ids(uneven, n, seed=0)
        assert len(set(picked)) == n
        assert Counter(name[0] for name in picked) == expected


def test_calibration_depends_on_the_seed_alone(uneven):
    first = chosen_ids(uneven, 6, seed=1)
    assert all(chosen_ids(shuffled(uneven, order), 6, seed=1) == first for order in range(5))
    assert len({tuple(chosen_ids(uneven, 6, seed)) for seed in range(5)}) > 1
    assert chosen_ids(uneven, 4, seed=1) == first[:4]  # a smaller sample is the start of a larger one


def test_calibration_choice_is_the_same_on_every_machine(uneven):
    # SHA-256 of "<seed>\0<id>" decides: computed apart from the code.
    key = {name: hashlib.sha256(f"7\0{name}".encode()).hexdigest() for name in uneven.sample_ids}
    assert chosen_ids(uneven, 1, seed=7) == [min(uneven.sample_ids, key=key.__getitem__)]


def test_calibration_without_labels_balances_over_folders(uneven):
    bare = ImageSet(uneven.source, uneven.sample_ids, None, "none", uneven.read)
    assert chosen_ids(bare, 5, seed=3) == chosen_ids(uneven, 5, seed=3)


def test_calibration_asked_for_more_than_there_is(uneven):
    with pytest.raises(InputError, match=r"14 calibration images .* has 13"):
        calibration_sample(uneven, 14, 0)
    assert sorted(calibration_sample(uneven, 13, 0)) == list(range(13))
    with pytest.raises(UsageError, match="--calib-samples"):
        calibration_sample(uneven, 0, 0)


@pytest.mark.imagenet
def test_imagenet_folders_have_the_labels_timm_gives_them(fimaq_data):
    info = ImageNetInfo()
    classes = {"wnids": info.label_names(), "names": [info.label_name_to_description(n) for n in info.label_names()]}
    images = open_dataset(fimaq_data / "imagenet_mini" / "val", classes=classes)
    assert len(images) == 1300
    assert len(set(images.labels)) == 725
    assert all(
        info.index_to_label_name(label) == name.split("/")[0]
        for name, label in zip(images.sample_ids, images.labels, strict=True)
    )
    assert len({images.labels[index] for index in calibration_sample(images, 725, 0)}) == 725
