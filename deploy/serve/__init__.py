"""The inference server: an ONNX file, or a repository of them, behind the Open Inference Protocol."""

from .server import Listening, serve
from .settings import Limits, Settings

__all__ = ["Limits", "Listening", "Settings", "serve"]
