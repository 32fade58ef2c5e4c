"""Lists the parts of a registered MLflow model: the artifact, the code that runs it, and pinned requirements."""

import base64
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Map

from visionpipe.artifact.classifier import read_labels, read_preprocessing
from visionpipe.data.deep import encoded
from visionpipe.data.form import PixelFormat
from visionpipe.tasks import Task

PACKAGE = Path(__file__).parents[1]
SERVING_CODE = (
    "__init__.py",
    "errors.py",
    "data/__init__.py",
    "data/colours.py",
    "data/decode.py",
    "data/formats.py",
    "data/frame.py",
    "data/headers.py",
    "data/levels.py",
    "data/form.py",
    "data/deep.py",
    "data/tiff.py",
    "data/dicom.py",
    "tasks/__init__.py",
    "tasks/task.py",
    "tasks/losses.py",
    "tasks/single.py",
    "tasks/multi.py",
    "artifact/__init__.py",
    "artifact/classifier.py",
)
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow", "tifffile")
OPTIONAL = ("pydicom",)  # pinned where it is installed


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
        "signature": signature(read_labels(artifact)[0]),
        "input_example": input_example(PixelFormat(**read_preprocessing(artifact)[1])),
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
    optional = [name for name in OPTIONAL if find_spec(name)]
    return [f"{name}=={version(name)}" for name in (*REQUIREMENTS, *optional)]


def signature(task: Task) -> ModelSignature:
    """Describes the model's inputs and outputs to MLflow."""
    kinds: dict[type, DataType | Array] = {
        str: DataType.string,
        float: DataType.double,
        list: Array(DataType.string),
    }
    answer = [ColSpec(kinds[kind], name) for name, kind in task.fields.items()]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([*answer, ColSpec(Map(DataType.double), "probabilities")]),
    )


def input_example(form: PixelFormat) -> pandas.DataFrame:
    """Makes an example request of one small white image, which every model of this format can answer."""
    white = np.full((32, 32, form.channels), form.most, form.dtype)
    return pandas.DataFrame({"image": [base64.b64encode(encoded(white, form)).decode()]})
