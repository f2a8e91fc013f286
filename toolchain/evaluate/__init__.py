"""Accuracy of a model on labelled images. Runs without torch, except ``torch_backend``."""

from .ort import OrtPredictor
from .predictor import Predictor
from .result import DatasetRef, EvalResult, Predictions
from .run import evaluate

__all__ = ["DatasetRef", "EvalResult", "OrtPredictor", "Predictions", "Predictor", "evaluate"]
