"""Asking the model hub once, before a client that asks for a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

PATIENCE = 5
"""Seconds to wait for an answer, unless ``HF_HUB_ETAG_TIMEOUT`` says how long."""


@contextmanager
def asked_once() -> Iterator[str | None]:
    """Inside, a hub that does not answer counts as offline: what it once gave is in its cache, all else fails at once.

    Yields why it does not answer, or None where it does. Its address, timeout, proxy and offline mode are the user's
    (``HF_ENDPOINT`` and the like).
    """
    silence = _silence()
    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or silence is not None
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = before


def _silence() -> str | None:
    """Why the hub does not answer; any status is an answer."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else PATIENCE
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception as error:  # noqa: BLE001  (their classes change with the client's version)
        return f"{constants.ENDPOINT} does not answer: {str(error) or type(error).__name__}"
    return None
