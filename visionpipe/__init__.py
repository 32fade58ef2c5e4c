"""visionpipe: from labelled images to a registered, served image classifier, reproducibly.

>>> import visionpipe
>>> project = visionpipe.open_project("flowers")
>>> project.run()
>>> project.results()
>>> visionpipe.load("models:/visionpipe@champion").predict("rose.jpg", top_k=3)
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionpipe.api import load as load
    from visionpipe.api import open_project as open_project

# By itself TensorFlow takes oneDNN's kernels only on processors with AVX-512, though they train a ResNet twice as fast
# on those without (docs/results/training.md). TensorFlow reads the variable when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.2.0"
__all__ = ["load", "open_project"]


def __getattr__(name: str) -> Any:
    """Imports what is public when it is first used."""
    if name in __all__:
        from visionpipe import api

        return getattr(api, name)
    raise AttributeError(f"module 'visionpipe' has no attribute {name!r}")
