"""`visionpipe container`: writes a folder from which Docker builds an image of the server, with the model inside."""

import shlex
import shutil
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from visionpipe.artifact.digest import artifact_files
from visionpipe.artifact.versions import RECORD, load, write_record
from visionpipe.errors import ConfigError
from visionpipe.files import making_folder
from visionpipe.tracking.lookup import looked_up

PACKAGE = Path(__file__).parents[1]
# The packages that `visionpipe serve FOLDER` imports. Their dependencies are added and pinned too. Those of
# OPTIONAL are pinned where they are installed here.
REQUIREMENTS = (
    "fastapi",
    "httptools",
    "numpy",
    "onnxruntime",
    "orjson",
    "pillow",
    "prometheus-client",
    "python-multipart",
    "pyyaml",
    "tifffile",
    "uvicorn",
    "uvloop",
)
OPTIONAL = ("pydicom",)
COMMAND = ("python", "-m", "visionpipe", "serve", "model", "--host", "0.0.0.0", "--port", "8000")  # nosec B104
DOCKERFILE = """\
# docker build -t visionpipe .
# docker run --read-only --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:8000:8000 visionpipe
# With a bearer token: -e VISIONPIPE_TOKEN. The model is inside the image: build a new image for another version.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-deps -r requirements.txt
COPY visionpipe visionpipe
COPY model model
# The umask of a copy of this folder may have removed the permission of others to read it.
RUN find . ! -perm -o=r -exec chmod a+rX {{}} +
RUN python -m compileall -q visionpipe && useradd --no-create-home --uid 10001 visionpipe
# Nothing is written at run time, so the root file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "{check}"]
STOPSIGNAL SIGTERM
CMD [{command}]
"""
CHECK = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"


def container(target: str, output: Path) -> None:
    """Writes Dockerfile, requirements.txt, the package and the verified model to the new folder `output`.

    Raises:
        ConfigError: `output` exists.
        ArtifactError: the model's files are damaged or not those that were registered.
        RegistryError: there is no such model.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already: remove it, or choose another --output")
    with making_folder(output) as folder:
        with looked_up(target) as model:
            load(model)
            (folder / "model").mkdir()
            for name in artifact_files(model.folder):
                shutil.copyfile(model.folder / name, folder / "model" / name)
            write_record(model, folder / "model" / RECORD)
        for file in sorted(PACKAGE.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = folder / "visionpipe" / file.relative_to(PACKAGE)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        (folder / "requirements.txt").write_text(
            "\n".join(pinned((*REQUIREMENTS, *filter(find_spec, OPTIONAL)))) + "\n"
        )
        command = ", ".join(f'"{word}"' for word in COMMAND)
        (folder / "Dockerfile").write_text(DOCKERFILE.format(check=CHECK, command=command))
        (folder / ".dockerignore").write_text("**/__pycache__\n")
    print(f"{model.name} version {model.number}: docker build -t visionpipe {shlex.quote(str(output))}")


def pinned(names: tuple[str, ...]) -> list[str]:
    """Returns the packages and all their dependencies as requirements of the installed versions."""
    todo, requirements = list(names), {}
    while todo:
        name = todo.pop()
        key = name.lower().replace("_", "-")
        if key in requirements:
            continue
        requirements[key] = f"{key}=={version(name)}"
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return [requirements[key] for key in sorted(requirements)]
