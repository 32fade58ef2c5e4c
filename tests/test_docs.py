"""The documentation: what is generated is up to date, links lead somewhere, tables are complete, examples work.

The pages are followed to the letter by test_docs_commands.py.
"""

import importlib.util
import re
import tomllib
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from visionpipe.data.augmentation import AUGMENTATIONS
from visionpipe.errors import ConfigError
from visionpipe.evaluation.metrics import classification_metrics, per_class
from visionpipe.evaluation.multilabel import multilabel_metrics, per_label
from visionpipe.project.params import load_params
from visionpipe.serving.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def generator():
    """docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate():
    return generator()


def blocks(language, *pages):
    """The fenced blocks of this language, each with its page."""
    return [
        (page, text)
        for page in pages
        for text in re.findall(
            rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
        )
    ]


def written_by_hand(*folders):
    return [f"docs/{page}" for page in PAGES if page.startswith(folders)]


def in_navigation(entries):
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else in_navigation(value)


# Pages ----------------------------------------------------------------------------------------------------------


def test_the_generated_pages_are_those_of_the_code(generate):
    differing = [path.name for path, text in generate.pages().items() if path.read_text() != text]
    assert not differing, "run python docs/generate.py"


def test_the_navigation_has_every_page_once():
    assert sorted(in_navigation(SITE["nav"])) == PAGES


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_links_and_pictures_lead_to_files(page):
    """The strict build of the site finds broken links between pages and broken anchors, but no missing pictures, and
    does not see the README.
    """
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"", text)
    local = [
        target for pair in targets for target in pair if target and not re.match(r"https?:|#|mailto:", target)
    ]
    missing = [
        target for target in local if not (ROOT / page).parent.joinpath(target.partition("#")[0]).exists()
    ]
    assert not missing


def test_the_readme_is_one_screen_and_each_guide_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    lengths = {
        page: len((DOCS / page).read_text().splitlines()) for page in PAGES if page.startswith("guides/")
    }
    assert {page: length for page, length in lengths.items() if length > 150} == {}


def test_the_pipelines_picture_has_every_text_on_a_fill_of_its_own():
    """So that it reads on a light and on a dark page."""

    class Shapes(HTMLParser):
        def __init__(self):
            super().__init__()
            self.boxes, self.texts = [], []

        def handle_starttag(self, tag, attributes):
            place = dict(attributes)
            if tag == "rect":
                self.boxes.append([float(place[name]) for name in ("x", "y", "width", "height")])
            elif tag == "text":
                self.texts.append((float(place["x"]), float(place["y"])))

    shapes = Shapes()
    shapes.feed((DOCS / "pipeline.svg").read_text())
    assert len(shapes.texts) > 10
    for x, y in shapes.texts:
        assert any(
            left < x < left + width and top < y < top + height for left, top, width, height in shapes.boxes
        )


# Completeness ---------------------------------------------------------------------------------------------------


def test_every_key_of_params_yaml_has_a_meaning():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| (.*) \|$", (DOCS / "reference" / "params.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 60
    assert [key for key, meaning in rows if not meaning.strip()] == []


def rows_of_the_page(heading):
    """Key → what the column `default` says, in one section of the page of params.yaml."""
    page = (DOCS / "reference" / "params.md").read_text()
    section = re.split(r"\n##+ ", page.split(f"\n## {heading}\n")[1])[0]
    return dict(re.findall(r"^\| `(\w+)` \| .*? \| (required|`[^`]*`) \| ", section, re.MULTILINE))


@pytest.mark.parametrize("place", ["", "prepare", "export", "evaluate", "register.gate", "tracking"])
def test_the_page_says_which_keys_may_be_left_out(place, tmp_path):
    defaults = rows_of_the_page(place or "The top level")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    of_dvc = {
        key for stage in stages for key in stage.get("do", stage).get("params", []) if isinstance(key, str)
    }
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    section = content
    for name in filter(None, place.split(".")):
        section = section[name]
    assert set(section) <= set(defaults)
    for key, value in list(section.items()):
        del section[key]
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        try:
            load_params(tmp_path / "params.yaml")
            needed = not place and key in of_dvc
        except ConfigError:
            needed = True
        assert needed == (defaults[key] == "required"), key
        section[key] = value


def test_the_page_names_every_limit_of_the_server():
    """Every number at the top of a module of the server, or of the decoder's checks, has a row that says what it is."""
    page = (DOCS / "reference" / "http.md").read_text()
    modules = [*(ROOT / "visionpipe" / "serving").glob("*.py"), ROOT / "visionpipe" / "data" / "headers.py"]
    numbers = re.compile(r"^([A-Z_0-9]+) = (?:\(\n +)?\d[\d_.* ]*(?:#.*)?$", re.MULTILINE)
    named = {name for file in modules for name in numbers.findall(file.read_text())}
    assert len(named) > 15
    rows = dict(re.findall(r"^\| [\d,.]+(?: s)? \| (.*) \| `[\w/.]+` `(\w+)` \|$", page, re.MULTILINE))
    assert named == set(rows.values())
    assert all(meaning.strip() for meaning in rows)
    options = {field.name for field in fields(Settings) if field.metadata}
    assert options == {
        name.replace("-", "_") for name in re.findall(r"^\| `--([\w-]+)` \|", page, re.MULTILINE)
    }


def test_the_page_of_metrics_has_every_key():
    page = (DOCS / "reference" / "metrics.md").read_text()
    labels, classes = np.arange(12) % 6, [f"class {k}" for k in range(6)]
    headline = classification_metrics(np.full((12, 6), 1 / 6), labels, classes, 15)
    table = per_class(np.ones((6, 6), int), classes)["class 0"]
    several = np.ones((2, 1)), np.ones((2, 1), np.int8), ["class 0"], np.array([0.5]), 15
    labelled = *multilabel_metrics(*several), *per_label(*several)["class 0"]
    assert [key for key in (*headline, *table, *labelled) if f"`{key}`" not in page] == []


def test_the_guide_shows_every_augmentation():
    guide = (DOCS / "guides" / "augmentation.md").read_text()
    assert [name for name in AUGMENTATIONS if f"images/{name}.png" not in guide] == []


def test_the_map_of_the_acceleration_is_that_of_the_kernels():
    from visionpipe.kernels import OPERATIONS

    page = (DOCS / "inside" / "acceleration.md").read_text()
    names = {"TensorFlow": "tensorflow", "torch": "torch", "JAX": "jax"}
    shown = set()
    for operations, backends in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([\w, ]+) \|", page, re.MULTILINE):
        for operation in re.findall(r"`(\w+)`", operations):
            shown |= {(operation, names[backend]) for backend in backends.split(", ") if backend in names}
    declared = {(operation, backend) for operation, backends in OPERATIONS.items() for backend in backends}
    assert {pair for pair in shown if pair[0] in OPERATIONS} == declared


def test_the_map_of_the_code_has_every_package_and_the_layers_that_are_checked():
    page = (DOCS / "inside" / "architecture.md").read_text()
    root = ROOT / "visionpipe"
    places = {f"{path.name}/" for path in root.iterdir() if (path / "__init__.py").exists()}
    places |= {path.name for path in root.glob("*.py") if not path.name.startswith("__")}
    assert [place for place in sorted(places) if f"`{place}`" not in page] == []
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = page.split("```text\n")[1].split("```")[0].splitlines()
    assert [line.replace(" │ ", " | ") for line in shown] == [
        layer for layer in contract["layers"] if layer != "__main__"
    ]


@pytest.mark.parametrize("page", written_by_hand("extending/", "inside/"))
def test_the_checklists_name_files_that_exist(page):
    named = re.findall(r"`((?:visionpipe|tests|docs|benchmarks)/[\w/.-]+)`", (ROOT / page).read_text())
    templates = ("NAME", "BACKEND")
    assert [
        name for name in named if not (ROOT / name).exists() and not any(t in name for t in templates)
    ] == []


def test_the_checklists_speak_of_what_the_code_has():
    code = [
        *(ROOT / "visionpipe").rglob("*.py"),
        *(ROOT / "tests" / "shared").glob("*.py"),
        *DOCS.glob("*.py"),
    ]
    words = {word for file in code for word in re.findall(r"\w+", file.read_text())}
    words |= {"NAME", "KEY", "README"} | set(re.findall(r"\w+", (ROOT / "dvc.yaml").read_text()))
    for page in written_by_hand("extending/"):
        named = re.findall(r"`(\w+)`", (ROOT / page).read_text())
        assert [name for name in named if name not in words] == [], page


# Examples -------------------------------------------------------------------------------------------------------

YAML = blocks("yaml", *written_by_hand("guides/", "quickstart"))


def test_there_are_examples_of_params_yaml():
    assert len(YAML) >= 15


@pytest.mark.parametrize(("page", "text"), YAML, ids=lambda value: value.splitlines()[0])
def test_what_a_page_shows_of_params_yaml_can_be_written_there(page, text, tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["prepare"]["size"] = [96, 96]  # which a patch of 16 divides
    for section, values in yaml.safe_load(text).items():
        content[section] = content[section] | values if isinstance(values, dict) else values
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    load_params(file)
