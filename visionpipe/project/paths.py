"""The paths of a project's files."""

import contextlib
import os
from pathlib import Path

from visionpipe.errors import ConfigError

STAGES = ("prepare", "train", "export", "evaluate", "register")


def project_root(start: Path | None = None) -> Path | None:
    """Returns the nearest folder, from `start` upwards, that holds params.yaml; None outside a project."""
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file():
            return folder
    return None


def enter_project() -> None:
    """Changes to the project's folder, so that every command works from a subfolder.

    Raises:
        ConfigError: the current folder is not in a project.
    """
    root = project_root()
    if root is None:
        raise ConfigError(
            f"{Path.cwd()} is not in a visionpipe project: make one with visionpipe init NAME --images FOLDER, or run "
            f"this in the folder of a project, which has a params.yaml"
        )
    os.chdir(root)


def champion() -> str:
    """Returns the address of the champion of the model `tracking.model`; outside a project, of `visionpipe`."""
    import yaml

    name, root = "visionpipe", project_root()
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        if root is not None:
            name = str(
                yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["tracking"]["model"]
            )
    return f"models:/{name}@champion"


def dvc_root() -> Path:
    """Returns the root of the DVC repository; in `dvc exp run --temp`, of the original, not of the temporary copy."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def model_folder(name: str) -> Path:
    """Returns the folder of a trained model: model.keras, history.csv, lineage.json."""
    return Path("models") / name


def artifact_folder(name: str) -> Path:
    """Returns the folder of an exported model: model.onnx, labels.json, preprocessing.json, parity.json and others."""
    return Path("artifacts") / name


def report_folder(name: str) -> Path:
    """Returns the folder of an evaluation: metrics, predictions and pictures."""
    return Path("reports") / name


def state_folder() -> Path:
    """Returns `.visionpipe`, the folder of checkpoints, locks and measurements, which DVC and git ignore."""
    return dvc_root() / ".visionpipe"
