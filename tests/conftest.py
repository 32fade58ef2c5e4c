"""Fixtures that several test files share."""

import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from linear_models import make_params, write_prepared
from repository import CHECKOUT, Project, make_project
from servers import RunningServer, artifact_folder, running

from visionpipe.artifact.classifier import Classifier
from visionpipe.data.prepared import PREPARED

LONGEST = (
    "test_readme.py", "test_pipeline.py", "test_backends.py", "test_zoo.py", "test_weights_exact.py", "test_kernels.py",
    "test_network.py", "test_training.py", "test_initial_weights.py", "test_promotion.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the test files that take longest first, so that no worker process runs one alone at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Project:
    """A committed temporary repository in which nothing has run; tests only copy it."""
    return make_project(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def project(pristine, tmp_path) -> Project:
    """A new temporary repository with the TensorFlow backend, in which nothing has run."""
    shutil.copytree(pristine.root, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with prepared images and a tracking store, which tests share. Each test uses other names in it."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", "code.lock"):
        (folder / name).symlink_to(CHECKOUT / name)
    write_prepared(folder / PREPARED)
    return folder


def enter(workspace: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(workspace)
    patch.setenv("PYTHONPATH", str(CHECKOUT))
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)


@pytest.fixture
def in_workspace(workspace, monkeypatch) -> None:
    """Makes the workspace the current folder of the test, and its store the tracking store."""
    enter(workspace, monkeypatch)


@pytest.fixture(scope="module")
def in_workspace_first(workspace):
    """Like `in_workspace`, for fixtures that a module sets up once."""
    with pytest.MonkeyPatch.context() as patch:
        enter(workspace, patch)
        yield


@pytest.fixture
def params(request, in_workspace):
    """Parameters of two models, with an experiment and a registered model that no other test uses."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return make_params(name, ["one", "two"])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The exported artifact of a small linear model."""
    return artifact_folder(tmp_path_factory.mktemp("artifacts") / "linear")


@pytest.fixture(scope="module")
def classifier(artifact) -> Classifier:
    return Classifier(artifact)


@pytest.fixture(scope="module")
def server(artifact) -> Iterator[RunningServer]:
    """`visionpipe serve` with the linear model, in a separate process."""
    with running(artifact) as server:
        yield server


@pytest.fixture
def terminal() -> io.StringIO:
    """A file that says it is a terminal. Use it with `redirect_stderr`: pytest replaces stderr after a fixture."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    return Terminal()
