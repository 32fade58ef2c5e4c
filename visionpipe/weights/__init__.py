"""Loads published checkpoints into models exactly.

    report = load_weights(model, "R50+ViT-B_16.npz")

Each format is one module with a table that says which of its tensors become which of our weights.
"""

from visionpipe.weights.checkpoint import PretrainedCheckpoint
from visionpipe.weights.load import load_weights
from visionpipe.weights.report import Preprocessing, Report
from visionpipe.weights.sources import resolve

__all__ = ["Preprocessing", "PretrainedCheckpoint", "Report", "load_weights", "resolve"]
