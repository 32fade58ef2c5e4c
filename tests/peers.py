"""What timm needs to be imported here."""

import importlib.machinery
import sys
import types
from unittest import mock


def stub_torchvision():
    """timm imports torchvision, of which there is no build beside a torch without CUDA; no model needs it."""

    class Stub(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return mock.MagicMock()

    parts = "transforms transforms.functional datasets ops ops.misc utils models models.feature_extraction"
    for name in ("torchvision", *(f"torchvision.{part}" for part in parts.split())):
        sys.modules[name] = Stub(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
