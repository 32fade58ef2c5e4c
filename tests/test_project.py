"""What the project says about itself: dependencies of the stages, pins, versions."""

import ast
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from visionpipe import __version__
from visionpipe.project.lock import write_lock
from visionpipe.project.params import load_params
from visionpipe.project.paths import STAGES

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
TEMPLATE = ROOT / "visionpipe" / "project" / "template"


def test_the_pipeline_of_this_repository_is_that_of_a_new_project():
    assert (ROOT / "dvc.yaml").read_bytes() == (TEMPLATE / "dvc.yaml").read_bytes()


def test_code_lock_is_that_of_the_code(tmp_path):
    shutil.copy(ROOT / "code.lock", tmp_path)
    assert write_lock(tmp_path) == ["code.lock is up to date: no stage runs again"], "run visionpipe lock"


@pytest.mark.parametrize("stage", STAGES)
def test_one_name_in_five_places(stage):
    definition = DVC["stages"][stage].get("do", DVC["stages"][stage])
    assert definition["cmd"].startswith(f"python -m visionpipe {stage}")
    functions = [
        n.name
        for n in ast.parse((ROOT / "visionpipe" / "stages" / f"{stage}.py").read_text()).body
        if isinstance(n, ast.FunctionDef)
    ]
    assert stage in functions
    assert any(name == stage for name in definition["params"])
    assert stage in yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_code_and_libraries_and_on_no_source_file(stage):
    definition = DVC["stages"][stage].get("do", DVC["stages"][stage])
    (locked,) = [entry["code.lock"] for entry in definition["params"] if isinstance(entry, dict)]
    libraries = {"train": ["libraries.${backend}"], "register": []}.get(stage, [f"libraries.{stage}"])
    assert locked == [f"stages.{stage}", *libraries]
    assert not [dep for dep in definition["deps"] if "visionpipe" in dep]


def test_every_dependency_is_pinned_to_the_version_that_was_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["jax"], *extras["torch"], *extras["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert pins.get(name), f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True)


def test_the_repository_names_no_package_registry():
    for file in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert not re.search(
            r"https?://|--index-url|--find-links", (ROOT / file).read_text().replace("http://127.0.0.1", "")
        )


def test_the_changelog_has_this_version():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_default_experiment_is_valid():
    params = load_params(ROOT / "params.yaml")
    assert {params.model_spec(name).family for name in params.models} == {"resnet", "vit", "hybrid"}


@pytest.mark.parametrize("file", sorted((ROOT / "visionpipe").rglob("*.py")), ids=lambda path: path.name)
def test_no_file_is_longer_than_a_reader_holds_in_mind(file):
    assert len(file.read_text().splitlines()) <= 400
