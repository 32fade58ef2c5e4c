"""A stub of torchvision, which timm imports but none of its models needs.

There is no build of torchvision for a torch without CUDA.
"""

import importlib.machinery
import sys
import types
from typing import Any
from unittest import mock

PARTS = (
    "transforms",
    "transforms.functional",
    "datasets",
    "ops",
    "ops.misc",
    "utils",
    "models",
    "models.feature_extraction",
)


class Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock()


def stub_torchvision() -> None:
    """Makes `import torchvision` and the imports of its parts succeed."""
    for name in ("torchvision", *(f"torchvision.{part}" for part in PARTS)):
        sys.modules[name] = Stub(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
