"""Which source files a stage uses."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from visionpipe.errors import ConfigError
from visionpipe.files import sha256_file


def stage_code(stage: str, dvc_yaml: Path = Path("dvc.yaml")) -> dict[str, str]:
    """sha256 of every source file among the stage's `deps` in dvc.yaml: the one list of what it uses."""
    definition = yaml.safe_load(dvc_yaml.read_text(encoding="utf-8"))["stages"].get(stage)
    if definition is None:
        raise ConfigError(f"{dvc_yaml} has no stage {stage}")
    deps = [Path(dep) for dep in definition.get("do", definition)["deps"] if dep.startswith("visionpipe/")]
    return {file.as_posix(): sha256_file(file) for file in sorted(python_files(deps))}


def python_files(paths: Iterable[Path]) -> set[Path]:
    return {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
