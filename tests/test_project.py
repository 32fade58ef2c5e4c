"""What the project says about itself: dependencies of the stages, pins, versions, the README's tree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from visionpipe import __version__
from visionpipe.project.lock import stage_code
from visionpipe.project.params import load_params

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = ("prepare", "train", "export", "evaluate", "register")

# Modules that a stage imports and that cannot change what it writes, each with the reason.
WITHOUT_EFFECT = {
    "config": "reads params.yaml, whose values DVC compares by themselves",
    "errors": "names what stops a stage",
    "files": "how files are written, not what is in them",
    "lineage": "hashes, which are compared with those of other versions",
    "evaluation/speed": "measures into a folder that is no output",
    "evaluation/comparison": "writes a table that is no output",
    "tracking/store": "opens MLflow, whose content is no output",
    "tracking/trained": "fetches a model whose sha256 is part of the key",
    "tracking/commits": "names a commit in MLflow, whose content is no output",
    "tracking/runs": "fills MLflow, whose content is no output",
    "backend": "for stages that only ask it for the number of threads",
}


def imported(module):
    """The modules of visionpipe that a file imports, inside functions too, as paths below visionpipe/."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "visionpipe" / f"{module}.py").read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("visionpipe"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("visionpipe")]
        for name in names:
            path = name.removeprefix("visionpipe").removeprefix(".").replace(".", "/")
            if (ROOT / "visionpipe" / f"{path}.py").is_file():
                found.add(path)
            elif path and (ROOT / "visionpipe" / path / "__init__.py").is_file():
                found.add(f"{path}/__init__")
    return found


def needed(stage):
    """What the stage's module imports, directly and through others, without what has no effect."""
    todo, seen = [stage], set()
    while todo:
        module = todo.pop()
        if module not in seen and (
            module not in WITHOUT_EFFECT or (module == "backend" and stage in ("train", "export"))
        ):
            seen.add(module)
            todo.extend(imported(module))
    return {f"visionpipe/{module}.py" for module in seen}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_every_module_that_a_stage_uses(stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    listed = set(stage_code(stage))
    missing = {path for path in needed(stage) - listed if not path.endswith("__init__.py")}
    assert not missing, f"add to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_one_name_in_five_places(stage):
    definition = DVC["stages"][stage].get("do", DVC["stages"][stage])
    assert definition["cmd"].startswith(f"python -m visionpipe {stage}")
    functions = [
        n.name
        for n in ast.parse((ROOT / "visionpipe" / f"{stage}.py").read_text()).body
        if isinstance(n, ast.FunctionDef)
    ]
    assert stage in functions
    assert any(name == stage for name in definition["params"])
    assert stage in yaml.safe_load((ROOT / "params.yaml").read_text())


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


def test_the_tree_in_the_readme_is_the_one_on_disk():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## What is where")[1].split("```")[1]
    named = set(re.findall(r"[\w.-]+\.py", tree))
    on_disk = {path.name for path in (ROOT / "visionpipe").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert named >= on_disk


@pytest.mark.parametrize("file", sorted((ROOT / "visionpipe").rglob("*.py")), ids=lambda path: path.name)
def test_no_file_is_longer_than_a_reader_holds_in_mind(file):
    assert len(file.read_text().splitlines()) <= 400


def test_what_the_readme_shows_of_params_yaml_can_be_written_there(tmp_path):
    readme = (ROOT / "README.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)]
    assert len(blocks) >= 6
    for block in blocks:
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["prepare"]["size"] = [96, 96]  # which a patch of 16 divides
        for section, values in block.items():
            content[section] |= values
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(content))
        load_params(file)
