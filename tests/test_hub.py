"""A hub that does not answer: asked once, in silence, and what it gave before is still used."""

from __future__ import annotations

import logging
import socketserver
import threading
from collections.abc import Iterator

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from fimaq.toolchain import hub
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.model import load_float

MODEL, REPOSITORY = "deit_tiny_patch16_224", "models--timm--deit_tiny_patch16_224.fb_in1k"


@pytest.fixture
def asked(monkeypatch, tmp_path) -> Iterator[list[str]]:
    """A hub that hangs up on every request: the requests' first lines. Nothing is cached."""
    requests: list[str] = []

    class HangUp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().decode().strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield requests
        server.shutdown()


@pytest.mark.parametrize("name", [MODEL, f"hf-hub:timm/{MODEL}.fb_in1k"])
def test_it_is_asked_once_and_quietly(name, asked, caplog, capfd):
    caplog.set_level(logging.WARNING)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+ does not answer: .* --weights FILE\.safetensors"):
        load_float(name)
    assert asked == ["HEAD / HTTP/1.1"]
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_what_it_gave_before_is_used(asked, tmp_path):
    folder = tmp_path / "cache" / REPOSITORY
    snapshot, reference = folder / "snapshots" / ("0" * 40), folder / "refs" / "main"
    for path in (snapshot, reference.parent):
        path.mkdir(parents=True)
    reference.write_text(snapshot.name)
    state = {key: torch.full_like(value, 0.5) for key, value in timm.create_model(MODEL).state_dict().items()}
    save_file(state, snapshot / "model.safetensors")
    loaded = load_float(MODEL).module
    assert all((value == 0.5).all() for value in loaded.state_dict().values())
    assert len(asked) == 1


def test_local_weights_need_no_hub(asked, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    load_float(MODEL, path)
    assert asked == []


def test_one_that_answers_stays_in_use(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: Session())
    with hub.asked_once() as silence:
        assert silence is None
        assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("offline", [False, True])
def test_the_users_own_setting_is_back_afterwards(offline, monkeypatch, asked):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    def stop() -> None:
        with hub.asked_once():
            assert constants.HF_HUB_OFFLINE is True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert constants.HF_HUB_OFFLINE is offline
    assert len(asked) == (0 if offline else 1)


class Session:
    """Stands for the client's: keeps how it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    def head(self, url: str, timeout: float) -> None:
        self.calls.append((url, timeout))


@pytest.mark.parametrize(("variable", "timeout"), [(None, 5), ("42", 42)])
def test_the_users_own_patience_is_in_force(variable, timeout, monkeypatch):
    session = Session()
    monkeypatch.setattr(hub, "get_session", lambda: session)
    if variable is not None:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", variable)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", int(variable))  # read from it at import
    with hub.asked_once():
        pass
    assert session.calls == [(constants.ENDPOINT, timeout)]
