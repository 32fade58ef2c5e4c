"""code.lock: what belongs to a stage's code, what changes it, and what a stage does when it runs with other code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from repository import CHECKOUT

from visionpipe.artifact.package import SERVING_CODE
from visionpipe.errors import LockError
from visionpipe.project import lock
from visionpipe.project.paths import STAGES

PACKAGE = CHECKOUT / "visionpipe"


def modules(room: str) -> set[str]:
    return {f"visionpipe/{path.relative_to(PACKAGE)}" for path in (PACKAGE / room).rglob("*.py")}


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("prepare", {f"visionpipe/data/{name}.py" for name in ("decode", "headers", "listing", "sources")}),
        ("train", modules("training") | modules("kernels") | modules("acceleration") | modules("weights")),
        ("train", modules("models")),
        ("export", modules("kernels") | {f"visionpipe/artifact/{n}.py" for n in ("canonical", "quantization")}),
        ("evaluate", {f"visionpipe/evaluation/{name}.py" for name in ("metrics", "pictures")}),
        ("register", modules("tracking") | {f"visionpipe/{name}" for name in (*SERVING_CODE, "artifact/pyfunc.py")}),
    ],
)  # fmt: skip
def test_the_code_of_a_stage_is_all_that_it_runs(stage, files):
    no_part = {
        *(f"visionpipe/models/{name}.py" for name in ("costs", "known")),  # tables for people
        "visionpipe/weights/download.py",
        "visionpipe/errors.py",
        *(
            f"visionpipe/tracking/{name}.py" for name in ("comparison", "lookup", "trained")
        ),  # for people, serving, and `init`
    }
    assert files - no_part <= lock.stage_files(stage).keys()


def test_what_cannot_change_an_output_is_in_no_stage():
    of_any = {name for stage in STAGES for name in lock.stage_files(stage)}
    for name in (
        "visionpipe/cli.py",
        "visionpipe/errors.py",
        "visionpipe/files.py",
        "visionpipe/project/lock.py",
    ):
        assert name not in of_any
    assert not [name for name in of_any if name.startswith(("visionpipe/commands/", "visionpipe/serving/"))]
    assert not [name for name in lock.stage_files("train") if name.startswith("visionpipe/tracking/")]


@pytest.mark.parametrize(
    "name", [*lock.WITHOUT_EFFECT, *lock.WITH_EFFECT["train"], *lock.WITH_EFFECT["register"]]
)
def test_every_exception_names_a_module(name):
    assert (PACKAGE / f"{name.replace('.', '/')}.py").is_file() or (PACKAGE / name).is_dir()


def written(source: str) -> str:
    return lock.code_of(lock.ast.parse(source))


SOURCE = '''"""A module."""
__version__ = "1"


def f(x):
    """Doubles."""
    return 2 * x  # a comment
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [("A module", "Another module"), ("Doubles", "Makes twice as much"), ("a comment", "why"), ('"1"', '"2"'),
     ("2 * x", "(\n        2\n        * x\n    )"), ('    """Doubles."""\n', "")],
)  # fmt: skip
def test_words_layout_and_the_version_are_no_code(old, new):
    assert old in SOURCE
    assert written(SOURCE.replace(old, new)) == written(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("2 * x", "3 * x"), ("f(x)", "f(x=1)"), ("2 * x", "2 + x"), ("2 *", "2.0 *")]
)
def test_everything_else_is_code(old, new):
    assert old in SOURCE
    assert written(SOURCE.replace(old, new)) != written(SOURCE)


def test_what_only_a_type_checker_reads_is_not_imported():
    source = "if TYPE_CHECKING:\n    import a\nif 1:\n    import b\ndef f():\n    import c\n"
    nodes = lock.running_nodes(lock.ast.parse(source))
    assert {n.names[0].name for n in nodes if isinstance(n, lock.ast.Import)} == {"b", "c"}


# With a package of its own, as after an upgrade --------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package, as `pip install` would make it."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(PACKAGE, folder / "visionpipe", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    for name in ("params.yaml", "dvc.yaml", "code.lock", "decisions.csv"):
        shutil.copy(CHECKOUT / name, tmp_path)
    return tmp_path


def visionpipe(package: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "KERAS_BACKEND", "DVC_STAGE")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "visionpipe", *arguments],
        cwd=folder, env=environment | {"PYTHONPATH": str(package)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def changed(package: Path, folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the package with one change."""
    shutil.copytree(
        package / "visionpipe", folder / "visionpipe", ignore=shutil.ignore_patterns("__pycache__")
    )
    path = folder / "visionpipe" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    return folder


def test_a_changed_line_is_named_with_its_stage_and_stops_that_stage_alone(
    package, project, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("upgraded")
    upgraded = changed(package, folder, "training/recipe.py", "batch_size: int = 64", "batch_size: int = 65")
    stopped = visionpipe(upgraded, project, "train", "vit")
    assert stopped.returncode == 1
    assert re.fullmatch(
        r"visionpipe: train: visionpipe/training/recipe.py has changed since code.lock was written: run visionpipe "
        r"lock, which prints what runs again\n",
        stopped.stderr,
    )
    later = visionpipe(upgraded, project, "export", "vit")
    assert "code.lock" not in later.stderr
    (project / "data").mkdir()
    before = yaml.safe_load((project / "code.lock").read_text())
    said = visionpipe(upgraded, project / "data", "lock").stdout.splitlines()  # from a subfolder
    assert said[0] == "train: visionpipe/training/recipe.py changed"
    assert len(said) == 2
    now = yaml.safe_load((project / "code.lock").read_text())
    assert [stage for stage in STAGES if before["stages"][stage] != now["stages"][stage]] == ["train"]
    assert visionpipe(upgraded, project, "lock").stdout == "code.lock is up to date: no stage runs again\n"


def test_a_changed_comment_and_another_version_run_nothing_again(package, project, tmp_path_factory):
    upgraded = changed(
        package,
        tmp_path_factory.mktemp("upgraded"),
        "training/recipe.py",
        "import math",
        "# why\nimport math",
    )
    version = upgraded / "visionpipe/__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', version.read_text()))
    assert "code.lock" not in visionpipe(upgraded, project, "train", "vit").stderr
    said = visionpipe(upgraded, project, "lock").stdout.splitlines()
    assert said[0].endswith("→ 99.0.0")
    assert said[1:] == ["code.lock is up to date: no stage runs again"]
    assert (project / "code.lock").read_text().count("99.0.0") == 1


# Libraries ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    assert lock.write_lock() == [f"code.lock written, for visionpipe {lock.__version__}"]
    return lock.read_lock()


def rewrite(content: dict) -> None:
    lock.LOCK.write_text(yaml.safe_dump(content))


def test_a_library_of_another_version_stops_the_stages_that_compute_with_it(here):
    here["libraries"]["tensorflow"]["keras"] = "2.0"
    rewrite(here)
    with pytest.raises(LockError, match=r"train: keras is \d.*, but code.lock has 2.0: run visionpipe lock"):
        lock.check_lock("train", "tensorflow")
    for stage, backend in (("train", "jax"), ("evaluate", "tensorflow"), ("prepare", "tensorflow")):
        lock.check_lock(stage, backend)
    assert lock.write_lock()[0].startswith("train: keras 2.0 → ")


def test_the_libraries_of_a_backend_that_is_not_installed_stay_as_they_are(here, monkeypatch):
    here["libraries"]["torch"]["torch"] = "2.99"
    rewrite(here)

    def version(name: str) -> str:
        if name == "torch":
            raise lock.metadata.PackageNotFoundError(name)
        return here["libraries"]["jax"].get(name) or here["libraries"]["export"].get(name, "13.0.0")

    monkeypatch.setattr(lock.metadata, "version", version)
    lock.write_lock()
    assert lock.read_lock()["libraries"]["torch"] == here["libraries"]["torch"]


@pytest.mark.parametrize("content", ["<<<<<<< ours\n", "visionpipe: 1\n", "- 1\n", "\0"])
def test_a_damaged_lock_is_one_line(tmp_path, content):
    (tmp_path / "code.lock").write_text(content)
    with pytest.raises(
        LockError, match="is damaged, perhaps by a merge: remove the file, then run visionpipe lock"
    ):
        lock.read_lock(tmp_path)


def test_a_project_of_the_version_before_is_told_how_it_moves_over(tmp_path):
    with pytest.raises(LockError, match=r"there is no .*code.lock: run visionpipe lock"):
        lock.read_lock(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  prepare:\n    deps:\n      - visionpipe/prepare.py\n")
    for act in (lock.read_lock, lock.write_lock):
        with pytest.raises(
            LockError, match=r"dvc.yaml is that of visionpipe 0.1: remove .*, then run visionpipe init"
        ):
            act(tmp_path)
    assert not (tmp_path / "code.lock").exists()


def test_decisions_csv_is_made_where_dvc_yaml_asks_for_it(tmp_path):
    (tmp_path / "dvc.yaml").write_bytes((CHECKOUT / "dvc.yaml").read_bytes())
    assert lock.write_lock(tmp_path)[1:] == [
        "decisions.csv was missing: it is written without decisions; commit it with code.lock"
    ]
    assert (tmp_path / "decisions.csv").read_bytes() == (CHECKOUT / "decisions.csv").read_bytes()
    assert lock.write_lock(tmp_path) == ["code.lock is up to date: no stage runs again"]
