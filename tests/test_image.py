"""The server's image: built from the Dockerfile without a registry, run as a cluster would, and asked two things.

The base is Debian's own Python, made by debootstrap, where the Dockerfile names Docker's: none of those can be had
without a registry. The first run makes it, in build/; a few minutes.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fimaq.deploy.package import Docker, package
from fimaq.toolchain.data.demo_set import LABEL_NAMES, PIXEL_SCALE, load_digits
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_float

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "build" / "image-base"
RELEASE = "bookworm"
LEFT_OUT = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache", "var/lib/apt/lists")
SERVE, MODEL = "localhost/fimaq-tool-serve", "localhost/fimaq-tool-model"
URL = "http://127.0.0.1:8080/v2"
MOST = 600e6
"""Bytes of the server's image without a model."""

pytestmark = pytest.mark.slow

ENTER = """
set -e
mount --bind "$1" "$2" && mount -o remount,bind,ro "$2"
mount -t proc proc "$2/proc" && mount --rbind /sys "$2/sys" && mount -t tmpfs -o mode=755 tmpfs "$2/dev"
for device in null zero random urandom; do touch "$2/dev/$device"; mount --bind "/dev/$device" "$2/dev/$device"; done
ip link set lo up
user=$3; root=$2; shift 3
exec chroot "$root" setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs \
    --bounding-set -all --inh-caps -all "$@"
"""
"""In namespaces of its own: the image's files, read-only, and what a container engine adds to them."""


def run(*command, **options):
    """Run, and say all that was printed where it fails."""
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout


@dataclass(frozen=True)
class Buildah:
    """Images in a folder of their own."""

    folder: Path

    def __call__(self, *words):
        storage = ("--root", self.folder / "storage", "--runroot", self.folder / "run", "--storage-driver", "overlay")
        return run("buildah", *storage, *words).strip()

    def build(self, name, context, *words):
        # Packages come from where this machine's pip gets them.
        shared = [path for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
        volumes = [f"--volume={path}:{path}:ro" for path in shared]
        self("bud", "--isolation=chroot", "--format=docker", *volumes, *words, f"--tag={name}", context)

    def config(self, name):
        return json.loads(self("inspect", "--type=image", name))["Docker"]["config"]

    def mount(self, name):
        return Path(self("mount", self("from", name)))


@dataclass(frozen=True)
class Container:
    """A running server: the process in it, seen from outside, and how long it took to be ready."""

    unshare: subprocess.Popen
    pid: int
    seconds: float

    def ask(self, path, *words):
        """Curl, in the container's network."""
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", "curl", "-sf", *words, f"{URL}/{path}")


@pytest.fixture(scope="module")
def base():
    """Debian with Python in a folder, like Docker's slim image: no documentation and no bytecode."""
    missing = [tool for tool in ("buildah", "debootstrap", "unshare", "nsenter", "curl") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"building an image needs root and {', '.join(missing) or 'nothing else'}")
    if not BASE.exists():
        temporary = BASE.with_name("image-base.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        packages = "--include=ca-certificates,python3,python3-venv"
        run("debootstrap", "--variant=minbase", packages, RELEASE, temporary)
        for folder in LEFT_OUT:
            shutil.rmtree(temporary / folder)
        for file in temporary.glob("usr/lib/python3*/**/*.pyc"):
            file.unlink()
        temporary.rename(BASE)
    return BASE


@pytest.fixture(scope="module")
def buildah(base, tmp_path_factory):
    tool = Buildah(tmp_path_factory.mktemp("buildah"))
    container = tool("from", "scratch")
    tool("add", container, base, "/")
    tool("commit", container, "localhost/base")
    tool.build(SERVE, ROOT, "--target=serve", "--build-arg=BASE=localhost/base")
    yield tool
    tool("rm", "--all")
    tool("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    export_float("demo_vit", path)
    return path


@pytest.fixture(scope="module")
def container(buildah, model, tmp_path_factory):
    """The image that ``package --target docker`` is for, run without privileges and without anything to write to."""
    folder = tmp_path_factory.mktemp("container")
    package(model, folder / "context", Docker(image=SERVE))
    buildah.build(MODEL, folder / "context")
    config = buildah.config(MODEL)
    (folder / "root").mkdir()
    command = [
        *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"),
        *(buildah.mount(MODEL), folder / "root", config["User"], "env", "-i", *config["Env"]),
        *(*config["Entrypoint"], *config["Cmd"]),
    ]
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        unshare = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not (pid := ready(unshare)):
            if unshare.poll() is not None or time.monotonic() - started > 60:
                pytest.fail((folder / "log").read_text())
        yield Container(unshare, pid, time.monotonic() - started)
    finally:
        unshare.kill()
        unshare.wait()


def ready(unshare):
    """The process in the container once it says it is ready; else None."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    if not children:
        return None
    ask = ["nsenter", f"--net=/proc/{children[0]}/ns/net", "curl", "-sf", f"{URL}/health/ready"]
    return int(children[0]) if subprocess.run(ask, capture_output=True).returncode == 0 else None


@pytest.fixture(scope="module")
def picture():
    """A digit as a PNG file."""
    images, _ = load_digits()
    file = io.BytesIO()
    Image.fromarray(images[20] * np.uint8(PIXEL_SCALE)).save(file, "PNG")
    return file.getvalue()


def test_the_image_is_small_and_has_no_torch(buildah, container, capsys):
    root = buildah.mount(SERVE)
    size = int(run("du", "-sxb", root).split()[0])
    with capsys.disabled():
        print(f"\nimage {size / 1e6:.0f} MB, ready {container.seconds:.2f} s after it was started")  # noqa: T201  measured
    assert size < MOST
    assert not list(root.glob("opt/fimaq/lib/python3*/site-packages/torch*"))


def test_the_image_says_how_it_is_to_be_run(buildah):
    config = buildah.config(MODEL)
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]


def test_the_server_has_no_privileges_and_nothing_to_write_to(container):
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{container.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    mounts = [line.split() for line in Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines()]
    assert next(mount[5] for mount in mounts if mount[4] == "/").split(",")[0] == "ro"


def test_the_images_own_probe_finds_it_ready(buildah, container):
    kind, *probe = buildah.config(SERVE)["Healthcheck"]["Test"]
    assert kind == "CMD"
    run("nsenter", f"--net=/proc/{container.pid}/ns/net", f"--root=/proc/{container.pid}/root", "--wd=/", *probe)


def test_the_tool_works_in_it_without_torch(container):
    inside = ("nsenter", f"--root=/proc/{container.pid}/root", "--wd=/", "env", "-i", "/opt/fimaq/bin/fimaq-tool")
    found = json.loads(run(*inside, "env", "--json"))
    assert found["providers"]["cpu"] == "ok"
    assert found["torch"]["usable"] is False


def test_a_tensor_is_answered_with_the_logits_of_evaluate(container, model):
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    answer = json.loads(container.ask("models/digits/infer", "--json", json.dumps({"inputs": [tensor]})))
    (output,) = answer["outputs"]
    # The other build of ONNX Runtime, and as many threads as there are cores: float32 sums in another order.
    expected = OrtPredictor(model)(images)
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, rtol=0, atol=1e-4)


def test_a_picture_is_answered_with_its_class(container, model, picture, tmp_path):
    (tmp_path / "digit.png").write_bytes(picture)
    words = ("-H", "Content-Type: image/png", "--data-binary", f"@{tmp_path / 'digit.png'}")
    (output,) = json.loads(container.ask("models/digits/infer", *words))["outputs"]
    predictor = OrtPredictor(model)
    logits = predictor(predictor.preprocessing.apply(Image.open(io.BytesIO(picture)))[None])
    assert output["data"][0].split(":")[2] == LABEL_NAMES[int(logits.argmax())]


def test_sigterm_ends_the_server_in_order(container):
    os.kill(container.pid, signal.SIGTERM)
    assert container.unshare.wait(timeout=60) == 0
