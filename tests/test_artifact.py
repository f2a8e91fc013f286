"""The run folder: whole or not at all, read back exactly, and refused when it is not what was saved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fimaq.toolchain.artifact import FORMAT_VERSION, MANIFEST, TENSORS, Artifact, check_destination, read_manifest
from fimaq.toolchain.errors import InputError


def make(**changes):
    manifest = {
        "recipe": {"name": "fast", "weights": {"bits": 4}},
        "model": {"name": "demo_vit"},
        "layers": [{"name": "head", "weight_bits": 4}],
        "preprocessing": {"height": 32},
        "classes": {"names": ["a", "b"]},
        "seconds": {"total": 1.5},
        **changes,
    }
    tensors = {
        "head.weight.codes": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "head.weight.scale": np.array([0.1, 0.2, 0.3], dtype=np.float32),
        "head.input.scale": np.array(0.5, dtype=np.float32),
    }
    return Artifact(manifest, tensors)


@pytest.fixture
def run(tmp_path):
    make().save(tmp_path / "run")
    return tmp_path / "run"


def edit(run, **changes):
    manifest = json.loads((run / MANIFEST).read_text()) | changes
    (run / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_saved_is_what_is_loaded(run):
    loaded = Artifact.load(run)
    assert loaded.manifest["model"] == {"name": "demo_vit"}
    assert loaded.manifest["format_version"] == FORMAT_VERSION
    assert loaded.manifest["sha256"] == make().content_sha256() == loaded.content_sha256()
    assert loaded.tensors.keys() == make().tensors.keys()
    for name, tensor in make().tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape


def test_save_returns_what_load_reads(tmp_path):
    saved = make().save(tmp_path / "run")
    assert saved.manifest == Artifact.load(tmp_path / "run").manifest


def test_the_folder_holds_just_its_files_and_nothing_stands_beside_it(tmp_path):
    log = tmp_path / "work.jsonl"
    log.write_text("{}\n")
    make().save(tmp_path / "out" / "run", files={"log.jsonl": log.read_bytes()})
    assert sorted(path.name for path in (tmp_path / "out" / "run").iterdir()) == ["log.jsonl", MANIFEST, TENSORS]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]


def test_a_tensor_that_is_a_view_is_saved_as_it_looks(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    seen = Artifact(make().manifest, {"t": base.T, "o": np.asfortranarray(base)})
    loaded = seen.save(tmp_path / "run").load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.tensors["t"], base.T)
    np.testing.assert_array_equal(loaded.tensors["o"], base)


def test_the_hash_ignores_timings_and_environment_and_order():
    first = make()
    other = make(seconds={"total": 99.0}, environment={"cpu": "another"}, sha256="old", blocks=[{"loss_last": 1}])
    assert Artifact(other.manifest, dict(reversed(first.tensors.items()))).content_sha256() == first.content_sha256()


@pytest.mark.parametrize("key", ["recipe", "model", "layers", "preprocessing", "classes"])
def test_the_hash_sees_what_decides_the_result(key):
    assert make(**{key: "changed"}).content_sha256() != make().content_sha256()


@pytest.mark.parametrize(
    "tensor",
    [
        np.array([0.1, 0.2, 0.25], dtype=np.float32),
        np.array([[0.1, 0.2, 0.3]], dtype=np.float32),
        np.array([0.1, 0.2, 0.3], dtype=np.float64),
    ],
    ids=["value", "shape", "dtype"],
)
def test_the_hash_sees_every_tensor(tensor):
    artifact = make()
    changed = Artifact(artifact.manifest, {**artifact.tensors, "head.weight.scale": tensor})
    assert changed.content_sha256() != artifact.content_sha256()


def test_the_hash_sees_a_tensors_name():
    artifact = make()
    renamed = {name.replace("head", "tail"): tensor for name, tensor in artifact.tensors.items()}
    assert Artifact(artifact.manifest, renamed).content_sha256() != artifact.content_sha256()


def test_an_existing_run_is_refused_and_kept(run):
    with pytest.raises(InputError, match=r"exists. Give another -o, or --force"):
        make(model="other").save(run)
    assert Artifact.load(run).manifest["model"] == {"name": "demo_vit"}


def test_force_replaces_a_run(run):
    make(model="other").save(run, force=True)
    assert Artifact.load(run).manifest["model"] == "other"
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_force_does_not_replace_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a run folder; it is never overwritten"):
        make().save(tmp_path, force=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("other", ["model.onnx", ".DS_Store", "second/manifest.json", "tensors.safetensors.bak"])
def test_force_does_not_replace_a_run_folder_with_other_files_in_it(run, other):
    (run / other).parent.mkdir(exist_ok=True)
    (run / other).write_text("mine")
    before = Artifact.load(run)
    with pytest.raises(InputError, match=re.escape(f"would be lost: {other}. Move")):
        make().save(run, force=True)
    assert (run / other).read_text() == "mine"
    assert Artifact.load(run).manifest == before.manifest


def test_a_link_is_a_file_too_and_many_are_counted(run, tmp_path):
    (run / "0-link").symlink_to(tmp_path)
    for number in range(1, 8):
        (run / str(number)).touch()
    with pytest.raises(InputError, match=r"would be lost: 0-link, 1, 2, 3, 4 and 3 more\. Move"):
        check_destination(run, force=True)


def test_force_replaces_a_run_with_its_log(run):
    (run / "log.jsonl").write_text("{}")
    make().save(run, force=True)
    assert sorted(path.name for path in run.iterdir()) == [MANIFEST, TENSORS]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "run").mkdir()
    make().save(tmp_path / "run")
    Artifact.load(tmp_path / "run")


def test_the_destination_can_be_checked_beforehand(tmp_path, run):
    assert check_destination(tmp_path / "new", force=False) == tmp_path / "new"
    with pytest.raises(InputError, match="--force"):
        check_destination(run, force=False)


@pytest.mark.parametrize("parent", ["a-file", "/proc/fimaq"])
def test_an_unwritable_place_is_refused_with_a_next_step(tmp_path, parent):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .* Give another -o"):
        make().save(tmp_path / parent / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Artifact({"recipe": 1}, {"x": np.zeros(200_000, np.uint8)}).save(Path(sys.argv[1]))
except InputError as error:
    sys.exit(0 if "could not be written" in str(error) and "Free some space" in str(error) else str(error))
sys.exit("saved")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_run(run):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Artifact({"recipe": 1}, {"x": np.zeros(200_000, np.uint8)}).save(Path(sys.argv[1]), force=True)
except InputError:
    sys.exit(0)
sys.exit("saved")
"""
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    Artifact.load(run)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("folder", ["absent", "."])
def test_a_folder_that_is_no_run_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"not a run folder: it has no manifest.json. Give the -o folder"):
        Artifact.load(tmp_path / folder)


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_corrupt_manifest_is_refused(run, content):
    (run / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match="not readable JSON"):
        Artifact.load(run)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": "1"}'])
def test_a_manifest_of_something_else_is_refused(run, content):
    (run / MANIFEST).write_text(content)
    with pytest.raises(InputError, match="not a fimaq manifest"):
        Artifact.load(run)


def test_an_incomplete_manifest_is_refused(run):
    (run / MANIFEST).write_text(json.dumps({"format_version": 1, "recipe": {}}))
    with pytest.raises(InputError, match="lacks model, layers, preprocessing, classes, sha256"):
        read_manifest(run)


def test_a_newer_format_asks_for_an_upgrade(run):
    edit(run, format_version=FORMAT_VERSION + 1)
    with pytest.raises(InputError, match=r"format version 2; this fimaq-tool reads up to 1. Upgrade it"):
        Artifact.load(run)


def test_missing_tensors_are_refused(run):
    (run / TENSORS).unlink()
    with pytest.raises(InputError, match=r"tensors.safetensors is missing or corrupt"):
        Artifact.load(run)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_tensors_are_refused(run, keep):
    (run / TENSORS).write_bytes((run / TENSORS).read_bytes()[:keep])
    with pytest.raises(InputError, match="missing or corrupt"):
        Artifact.load(run)


def test_one_changed_byte_is_noticed(run):
    content = bytearray((run / TENSORS).read_bytes())
    content[-1] ^= 1
    (run / TENSORS).write_bytes(content)
    with pytest.raises(InputError, match="was changed after it was saved"):
        Artifact.load(run)


def test_a_changed_recipe_is_noticed(run):
    edit(run, recipe={"name": "fast", "weights": {"bits": 8}})
    with pytest.raises(InputError, match="was changed after it was saved"):
        Artifact.load(run)


def test_a_changed_hash_is_noticed(run):
    edit(run, sha256="0" * 64)
    with pytest.raises(InputError, match=f"its manifest says {'0' * 64}"):
        Artifact.load(run)


def test_tensors_numpy_cannot_hold_are_refused(run):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (run / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(InputError, match=r"missing or corrupt|was changed"):
        Artifact.load(run)


def test_a_folder_that_cannot_take_its_name_leaves_the_earlier_run(run, monkeypatch):
    """What was there was set aside already."""
    original, renames = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == 2:
            raise PermissionError("no")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="it is as it was"):
        make().save(run, force=True)
    monkeypatch.undo()
    Artifact.load(run)
    assert [path.name for path in run.parent.iterdir()] == ["run"]
