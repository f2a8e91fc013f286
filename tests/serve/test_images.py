"""Images as bodies: what evaluate computes is what is served, and what is no image costs nothing."""

import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fimaq.deploy.serve.errors import Malformed, TooLarge
from fimaq.deploy.serve.images import _scans, to_input
from fimaq.toolchain.image_input import ImageInput

INFER = "/v2/models/toy/infer"
TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
CASES = 100
"""Generated requests a test; there are three such tests."""


def picture(width=13, height=9, mode="RGB"):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def png(width, height, rows=b""):
    """A PNG file whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def jpeg_that_claims(width, height):
    """A JPEG file with another size written into its header."""
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_that_claims(width, height):
    """A lossless WebP file with another size written into its header."""
    buffer = io.BytesIO()
    picture().save(buffer, format="WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = (bits >> 28 << 28 | (height - 1) << 14 | width - 1).to_bytes(4, "little")
    return bytes(data)


def webp_and_im(side):
    """A file that says it is WebP of 8 x 8 pixels, and is an image of ``side`` x ``side`` to Pillow's decoder of IM."""
    lines = b"x: y\nImage size (x*y): %d*%d\nImage type: 0 1 image\n\x1a" % (side, side)
    content = b"\x2f" + struct.pack("<I", 7 | 7 << 14) + lines + bytes(-(-side // 8) * side)
    length = -(-len(content) // 0x10000) * 0x10000 + 0x460A  # its first byte ends the first line, which has a colon
    content += bytes(length - len(content))
    size, more = 12 + length, 0
    while b":" not in struct.pack("<I", size + more) or 0 < more < 8:
        more += 2
    tail = b"JUNK" + struct.pack("<I", more - 8) + bytes(more - 8) if more else b""
    return b"RIFF" + struct.pack("<I", size + more) + b"WEBPVP8L" + struct.pack("<I", length) + content + tail


def jpeg_of_scans(count, thumbnail=b""):
    """A progressive grey JPEG file of 64 x 64 pixels: one scan of means, and scans that add nothing, 13 bytes each."""

    def segment(marker, content):
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    def scan(low, high, data):
        return segment(0xDA, bytes([1, 1, 0, low, high, 0])) + data

    one_code = bytes([1] + [0] * 15)
    tables = segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    start = segment(0xC2, struct.pack(">BHHB", 8, 64, 64, 1) + bytes([1, 0x11, 0]))
    scans = scan(0, 0, bytes(8)) + (count - 1) * scan(1, 63, b"\0\1")
    return (
        b"\xff\xd8"
        + segment(0xE1, thumbnail)
        + segment(0xDB, bytes([0] + [1] * 64))
        + start
        + tables
        + scans
        + b"\xff\xd9"
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_is_answered_as_if_preprocessed_here(server, toy, kind, mode):
    data = encoded(picture(mode=mode), kind)
    images = toy.preprocessing.apply(Image.open(io.BytesIO(data)))[None]
    status, answer = server.json("POST", f"{INFER}?classification=0", data, {"Content-Type": TYPES[kind]})
    assert status == 200
    np.testing.assert_allclose([answer["outputs"][0]["data"]], toy.logits(images), atol=1e-5)


def test_five_classes_are_named_by_default(server, toy):
    data = encoded(picture(), "PNG")
    best = np.argsort(-toy.logits(toy.preprocessing.apply(picture())[None])[0])[:5]
    _, answer = server.json("POST", INFER, data, {"Content-Type": "image/png"})
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 5])
    assert [text.split(":", 2)[2] for text in output["data"]] == [toy.names[index] for index in best]


def test_logits_can_be_had_in_binary(server, toy):
    path = f"{INFER}?classification=0&binary_data_output=true"
    _, headers, content = server.ask("POST", path, encoded(picture(), "PNG"), {"Content-Type": "image/png"})
    tail = content[int(headers["Inference-Header-Content-Length"]) :]
    expected = toy.logits(toy.preprocessing.apply(picture())[None])
    np.testing.assert_allclose(np.frombuffer(tail, "<f4")[None], expected, atol=1e-5)


def test_the_content_decides_which_format_it_is(server):
    assert server.ask("POST", INFER, encoded(picture(), "WEBP"), {"Content-Type": "image/jpeg"})[0] == 200


@pytest.mark.parametrize(
    ("path", "data", "media", "status", "message"),
    [
        (INFER, b"", "image/png", 400, "no JPEG, PNG or WebP"),
        (INFER, encoded(picture(), "GIF"), "image/png", 400, "no JPEG, PNG or WebP"),
        (INFER, encoded(picture(), "GIF"), "image/gif", 415, "wanted image/jpeg, image/png, image/webp"),
        (INFER, encoded(picture(), "PNG")[:60], "image/png", 400, "cannot be"),
        (INFER, png(30_000, 30_000), "image/png", 413, "image is too large"),
        (INFER, jpeg_that_claims(9_000, 9_000), "image/jpeg", 413, "9000x9000 pixels"),
        (INFER, webp_that_claims(12_000, 12_000), "image/webp", 413, "12000x12000 pixels"),
        (INFER, png(60_000, 1), "image/png", 400, "cannot be decoded"),
        (INFER, b"--x", "multipart/form-data; boundary=x", 415, "send the image, or the JSON, as the whole body"),
        (f"{INFER}?clasification=3", encoded(picture(), "PNG"), "image/png", 400, "the query has 'clasification'"),
        (f"{INFER}?classification=x", encoded(picture(), "PNG"), "image/png", 400, "wanted a number of classes"),
        (f"{INFER}?binary_data_output=1", encoded(picture(), "PNG"), "image/png", 400, "true or false"),
    ],
)
def test_what_is_no_image_is_refused(server, path, data, media, status, message):
    got, answer = server.json("POST", path, data, {"Content-Type": media})
    assert got == status
    assert message in answer["error"]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of IM, which it will lose
def test_a_file_of_two_formats_is_decoded_as_the_one_that_was_measured(toy):
    """Else the other format's size is bounded by nothing, and its decoder was never meant for strangers' files."""
    data = webp_and_im(3000)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("IM", (3000, 3000))  # what Pillow makes of it by itself
    with pytest.raises(Malformed, match="cannot be decoded"):
        to_input(data, ImageInput(toy.preprocessing, "float"), 10_000)


def test_a_thin_image_that_would_be_scaled_to_gigabytes_is_refused(toy):
    with pytest.raises(Malformed, match="Crop the image"):
        to_input(
            encoded(Image.new("RGB", (1, 60_000)), "PNG"),
            ImageInput(replace(toy.preprocessing, height=224, width=224), "float"),
            2**26,
        )


def test_scans_without_end_are_not_decoded(toy, monkeypatch):
    """Each is a pass over all pixels for a few bytes: a megabyte of them would keep a thread for a minute."""
    form = ImageInput(toy.preprocessing, "float")
    hidden = jpeg_of_scans(300)  # as a thumbnail's are: nobody decodes them
    assert to_input(jpeg_of_scans(200, thumbnail=hidden) + bytes(2) + hidden, form, 2**26).shape == (1, *form.shape)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(Malformed, match="more than 200 scans"):
        to_input(jpeg_of_scans(201), form, 2**26)


def test_a_progressive_image_has_ten_scans(toy):
    """Counted in what libjpeg wrote, so that the limit is far from what anyone sends."""
    buffer = io.BytesIO()
    picture(200, 150).save(buffer, format="JPEG", progressive=True)
    assert _scans(buffer.getvalue()) == 10


def test_nothing_is_decoded_before_the_size_is_known(toy, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(TooLarge, match="8193x8192"):
        to_input(png(8193, 8192), ImageInput(toy.preprocessing, "float"), 2**26)


# Generated damage: no answer of 500 and more, no dead server, no memory that stays


@pytest.fixture(scope="module")
def kept_connection(server):
    """One connection for many requests, and a look at the memory before and after them all."""
    connection = server.connect()
    connection.request("POST", INFER, encoded(picture(), "PNG"), {"Content-Type": "image/png"})
    connection.getresponse().read()
    before = server.resident()
    yield connection
    connection.close()
    assert server.json("GET", "/v2/health/live")[0] == 200
    assert server.resident() - before < 100e6


def status_of(connection, data, headers, path=INFER):
    connection.request("POST", path, data, headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200 or list(json.loads(content)) == ["error"]
    return answer.status


generated = settings(
    max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@generated
@given(
    kind=st.sampled_from(sorted(TYPES)),
    cut=st.integers(0, 400),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=12),
)
def test_damaged_images(kept_connection, kind, cut, changes):
    data = bytearray(encoded(picture(16, 16), kind))
    for place, value in changes:
        data[place % len(data)] = value
    status = status_of(kept_connection, bytes(data[: cut or None]), {"Content-Type": TYPES[kind]})
    assert status in (200, 400, 413)  # damage in a file's comments hurts nothing


@generated
@given(width=st.integers(1, 2**31 - 1), height=st.integers(1, 2**31 - 1))
def test_headers_that_claim_any_size(kept_connection, width, height):
    status = status_of(kept_connection, png(width, height, b"\0" * 64), {"Content-Type": "image/png"})
    whole = (3 * width + 1) * height <= 64
    assert status == (200 if whole else 413 if width * height > 2**26 else 400)


@generated
@given(
    shape=st.lists(st.integers(-(2**40), 2**40) | st.sampled_from([1, 3, 8]), max_size=6),
    size=st.integers(-(2**40), 2**40) | st.sampled_from([768, 767]),
    tail=st.integers(0, 3000),
    length=st.integers(0, 400) | st.none(),
)
def test_tensors_that_lie(kept_connection, shape, size, tail, length):
    tensor = {"name": "image", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
    status = status_of(kept_connection, head + bytes(tail), headers)
    honest = shape == [1, 3, 8, 8] and size == tail == 768 and length is None
    bare = length == 0 and (len(head) + tail) % 768 == 0
    assert status == (200 if honest or bare else 400)
