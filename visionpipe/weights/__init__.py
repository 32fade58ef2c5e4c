"""Published checkpoints, loaded exactly: each format is one file, a table of which tensor is which of our
weights.

    report = load_weights(model, "R50+ViT-B_16.npz")
"""

from visionpipe.weights.checkpoint import Checkpoint
from visionpipe.weights.load import load_weights
from visionpipe.weights.report import Preprocessing, Report
from visionpipe.weights.sources import resolve

__all__ = ["Checkpoint", "Preprocessing", "Report", "load_weights", "resolve"]
