"""Lists the parts of a registered MLflow model: the artifact, the code that runs it, and pinned requirements."""

import base64
import io
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from PIL import Image

PACKAGE = Path(__file__).parents[1]
SERVING_CODE = (
    "__init__.py",
    "errors.py",
    "data/__init__.py",
    "data/decode.py",
    "data/headers.py",
    "artifact/__init__.py",
    "artifact/classifier.py",
)
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow")


def pyfunc_arguments(artifact: Path, staging: Path) -> dict[str, Any]:
    """Returns the keyword arguments for `mlflow.pyfunc.log_model` and `save_model`.

    Args:
        artifact: the output folder of the export stage, `artifacts/NAME`.
        staging: an empty folder, which holds the code until MLflow has copied it.
    """
    return {
        "python_model": str(PACKAGE / "artifact/pyfunc.py"),
        "artifacts": {"classifier": str(artifact)},
        "code_paths": [str(copy_code(staging))],
        "pip_requirements": pip_requirements(),
        "signature": signature(),
        "input_example": input_example(),
    }


def copy_code(folder: Path) -> Path:
    """Copies the modules that serving imports to `folder/visionpipe`, and returns that path.

    MLflow puts the copy first on `sys.path`, so a served model runs the code that it was registered with, whichever
    version of visionpipe is installed.
    """
    for name in SERVING_CODE:
        target = folder / PACKAGE.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, target)
    return folder / PACKAGE.name


def pip_requirements() -> list[str]:
    """Pins the installed versions. MLflow's inference of requirements takes ten seconds, and lists too many."""
    return [f"{name}=={version(name)}" for name in REQUIREMENTS]


def signature() -> ModelSignature:
    """Describes the model's inputs and outputs to MLflow."""
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(Map(DataType.double), "probabilities")]),
    )


def input_example() -> pandas.DataFrame:
    """Makes an example request of one small white image, which every model can answer."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(file, "PNG")
    return pandas.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})
