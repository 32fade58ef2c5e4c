import ast
from pathlib import Path

import numpy as np
import pytest
import yaml

import visionpipe
from visionpipe.errors import ConfigError
from visionpipe.project.params import load_params
from visionpipe.project.sections import GateConfig
from visionpipe.tasks import TASKS, task_for

PACKAGE = Path(visionpipe.__file__).parent


def choices(tree: ast.AST) -> list[int]:
    """Returns the lines that choose by the name of a task: comparisons, cases of a match, and keys of a dict."""
    lines = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                parts = [node.left, *node.comparators]
            case ast.MatchValue():
                parts = [node.value]
            case ast.Dict():
                parts = [key for key in node.keys if key]
            case _:
                continue
        if any(isinstance(part, ast.Constant) and part.value in TASKS for part in parts):
            lines.append(node.lineno)
    return lines


def test_nothing_outside_tasks_chooses_by_the_name_of_a_task():
    assert choices(ast.parse('x == "multi"')) == choices(ast.parse('{"single": 1}')) == [1]
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "tasks"]
    assert len(modules) > 100
    found = {str(path): lines for path in modules if (lines := choices(ast.parse(path.read_text("utf-8"))))}
    assert not found


def test_every_key_of_the_gate_belongs_to_one_task_or_to_the_data():
    keys = [key for task in TASKS.values() for key in task.gate()]
    assert len(keys) == len(set(keys))
    assert set(GateConfig.__dataclass_fields__) - set(keys) == {"max_leak", "max_shortcut"}


def test_a_task_is_chosen_by_the_number_of_labels():
    assert [task_for(several).name for several in (False, True)] == ["single", "multi"]


def test_targets_of_one_class_take_no_memory_for_pairs_of_classes():
    targets = TASKS["single"].targets(np.array([3, 199_999]), 200_000)
    assert targets.dtype == np.float32
    assert np.argwhere(targets).tolist() == [[0, 3], [1, 199_999]]


@pytest.mark.parametrize(
    ("task", "precision", "said"),
    [
        ("single", 0.9, "export.target_precision: is for task: multi"),
        ("multi", 1.5, "must lie between 0 and 1"),
        ("multi", 0.0, "must lie between 0 and 1"),
    ],
)
def test_a_precision_that_would_have_no_effect_is_refused(tmp_path, task, precision, said):
    content = yaml.safe_load((PACKAGE.parent / "params.yaml").read_text())
    content |= {"task": task, "register": {"gate": {}}}
    content["export"]["target_precision"] = precision
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=said):
        load_params(tmp_path / "params.yaml")
