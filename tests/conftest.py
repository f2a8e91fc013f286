"""What every test runs under: no network, no telemetry, and signatures whose shapes are checked."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Both are read at import, so they are set before any test imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Shapes and dtypes in the signatures of these packages are checked on every call a test makes.
install_import_hook(["fimaq.toolchain.fisher", "fimaq.toolchain.quantizers"], "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")


@pytest.fixture(scope="session")
def fimaq_data() -> Path:
    """The folder of images and weights for real runs."""
    folder = Path(os.environ.get("FIMAQ_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set FIMAQ_DATA to the one that holds imagenet_mini/, weights/ and reference/")
    return folder


@pytest.fixture(scope="session")
def triton_model_config():
    """Triton's own ModelConfig, without the client around it, which wants gRPC."""
    (place,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(place) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


@pytest.fixture(scope="module")
def browser():
    """A real browser without a screen."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt-get install chromium")
    with playwright.sync_playwright() as running:
        # Inside a container the browser cannot make a sandbox of its own.
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
