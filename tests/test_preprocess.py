"""Preprocessing against timm's own transform, value for value."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_data_config

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.preprocess import MAX_RESIZED_PIXELS, Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZES = [(57, 41), (41, 57), (32, 32), (33, 32), (1, 1), (2, 3), (90, 17), (17, 91), (37, 36)]  # width, height
GOOD = {
    "height": 224,
    "width": 192,
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    **IMAGENET,
}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Random pixels, also in the modes that files on disk come in."""
    rng = np.random.default_rng(width * 1000 + height)
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
        return rgb
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    return rgb if mode == "RGB" else rgb.convert(mode)


def assert_same_as_timm(cfg: dict, image: Image.Image) -> None:
    # timm's data sets convert to RGB before they call the transform.
    expected = create_transform(**cfg, is_training=False)(image.convert("RGB")).numpy()
    got = Preprocessing.from_timm(cfg).apply(image)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.15])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("input_size", [(3, 32, 32), (3, 40, 24), (3, 21, 35)])
def test_equals_timm_over_odd_sizes(crop_mode, crop_pct, interpolation, input_size):
    for place, (width, height) in enumerate(SIZES):
        stats = IMAGENET if place % 2 else HALF
        cfg = {
            "input_size": input_size,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
            **stats,
        }
        assert_same_as_timm(cfg, noise(width, height))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_equals_timm_over_image_modes(mode, crop_mode):
    cfg = {
        "input_size": (3, 32, 32),
        "crop_pct": 0.875,
        "crop_mode": crop_mode,
        "interpolation": "bicubic",
        **IMAGENET,
    }
    assert_same_as_timm(cfg, noise(53, 38, mode))


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224.fb_in1k",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "swin_tiny_patch4_window7_224.ms_in1k",
        "deit3_small_patch16_224.fb_in1k",
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    ],
)
def test_equals_timm_for_the_configs_of_real_models(name):
    cfg = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert_same_as_timm(cfg, noise(300, 199))


def test_every_rgb_model_of_timm_is_accepted():
    names = timm.list_models(pretrained=True)
    assert len(names) > 1000
    for name in names:
        cfg = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        got = Preprocessing.from_timm(cfg)
        assert (3, got.height, got.width) == tuple(cfg["input_size"])


def test_missing_crop_fields_mean_what_timm_means():
    cfg = {"input_size": (3, 32, 32), "crop_pct": None, "crop_mode": None, "interpolation": "bilinear", **HALF}
    assert_same_as_timm(cfg, noise(57, 41))


def test_exif_orientation_is_left_alone_as_timm_leaves_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    noise(60, 40).save(tmp_path / "turned.png", exif=exif)
    cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic", **HALF}
    with Image.open(tmp_path / "turned.png") as image:
        assert image.getexif()[0x0112] == 6
        assert_same_as_timm(cfg, image)


def test_json_is_canonical_and_hashed():
    text = (
        '{"crop_mode":"center","crop_pct":0.9,"height":224,"interpolation":"bicubic",'
        '"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"width":192}'
    )
    preprocessing = Preprocessing(**GOOD)
    assert preprocessing.to_json() == text
    assert preprocessing.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert Preprocessing.from_json(text) == preprocessing
    assert Preprocessing.from_json(json.loads(text)) == preprocessing


def test_equal_values_of_other_types_have_one_hash():
    first = Preprocessing(**{**GOOD, "crop_pct": 1, "mean": [0, 0, 0], "std": [1, 1, 1]})
    second = Preprocessing(**{**GOOD, "crop_pct": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    assert first == second
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"height": 0}, "height"),
        ({"width": 1.5}, "width"),
        ({"width": True}, "width"),
        ({"height": 10**6}, "height"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 3.0}, "crop_pct"),
        ({"crop_pct": float("nan")}, "crop_pct"),
        ({"crop_pct": "0.9"}, "crop_pct"),
        ({"crop_mode": "middle"}, "crop_mode"),
        ({"interpolation": "random"}, "interpolation"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.5, 0.5, float("inf"))}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"std": 0.5}, "std"),
        ({"fill": 0}, "fill"),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(change, word):
    with pytest.raises(InputError, match=word) as error:
        Preprocessing.from_json({**GOOD, **change})
    assert "Re-export" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize("size", [(1, 224, 224), (4, 224, 224), 224, None])
def test_only_rgb_models(size):
    with pytest.raises(InputError, match="input_size"):
        Preprocessing.from_timm({"input_size": size, "interpolation": "bicubic", **HALF})


def test_timm_config_without_mean_is_refused():
    with pytest.raises(InputError, match="mean"):
        Preprocessing.from_timm({"input_size": (3, 32, 32), "interpolation": "bicubic", "std": HALF["std"]})


def test_an_image_too_long_and_thin_to_scale_is_refused():
    assert MAX_RESIZED_PIXELS < 64 * 60000 * 64
    preprocessing = Preprocessing(**{**GOOD, "height": 64, "width": 64, "crop_pct": 1.0})
    with pytest.raises(InputError, match="60000x1"):
        preprocessing.apply(Image.new("RGB", (60000, 1)))
    with pytest.raises(InputError, match="1x5000"):
        Preprocessing(**{**GOOD, "crop_mode": "border"}).apply(Image.new("RGB", (1, 5000)))


def test_imports_neither_torch_nor_timm_nor_onnxruntime():
    code = (
        "import sys, fimaq.toolchain.preprocess, fimaq.toolchain.data, fimaq.toolchain.evaluate;"
        "import fimaq.toolchain.runtime;"
        "print(sorted({'torch', 'timm', 'torchvision', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.imagenet
def test_deit_tiny_sees_what_timm_would_show_it(fimaq_data):
    files = sorted((fimaq_data / "imagenet_mini" / "val").rglob("*.JPEG"))[:30]
    cfg = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("deit_tiny_patch16_224").to_dict())
    transform, preprocessing = create_transform(**cfg, is_training=False), Preprocessing.from_timm(cfg)
    assert len(files) == 30
    for file in files:
        with Image.open(file) as image:
            np.testing.assert_array_equal(preprocessing.apply(image), transform(image.convert("RGB")).numpy())
