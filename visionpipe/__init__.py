"""visionpipe: params.yaml in, a registered and served image classifier out."""

import os

# By itself TensorFlow takes oneDNN's kernels only on processors with AVX-512, though they train a ResNet twice
# as fast on those without (docs/results/training.md). It looks when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"
