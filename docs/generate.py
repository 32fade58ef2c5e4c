"""Writes the generated pages of the documentation: python docs/generate.py

docs/index.md and the pages params, models, cli and python of docs/reference are generated whole. In
docs/reference/http.md the tables between markers are. `tests/test_docs.py` compares all of them with what is committed.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(DOCS)]

from docstrings import capitalised, fields_table, summary, table  # noqa: E402

from visionpipe.commands import options  # noqa: E402
from visionpipe.data import augmentation  # noqa: E402
from visionpipe.data.config import PrepareConfig, TableConfig  # noqa: E402
from visionpipe.models import known, list_models, specs  # noqa: E402
from visionpipe.project import params, sections  # noqa: E402
from visionpipe.project.schema import may_be_left_out  # noqa: E402
from visionpipe.serving.settings import Settings  # noqa: E402
from visionpipe.training import recipe  # noqa: E402
from visionpipe.training.presets import PRESETS  # noqa: E402

NOTE = "<!-- Written by docs/generate.py: change the source that it reads, then run it again. -->\n\n"


# Pages --------------------------------------------------------------------------------------------------------------


def index_page() -> str:
    """The README, with its links as they are from the folder docs/."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(\]\(|src=\"|srcset=\")docs/", r"\1", text)
    text = text.replace("[CONTRIBUTING.md](CONTRIBUTING.md)", "[Tests](inside/tests.md)")
    return NOTE + text


def params_page() -> str:
    parts = [
        "# params.yaml\n\n",
        NOTE,
        "This file is the whole experiment. A key that is not listed here, a value of another type or an impossible\n"
        "combination is refused with one line that names the key. Change a value for one run without touching the\n"
        "file: `dvc exp run -S train.epochs=20`. `visionpipe params` checks the file and prints the plan of each\n"
        "training.\n\n"
        "A key with *required* in the column *default* must be in the file. `visionpipe init` writes all of them. Any\n"
        "other key may be left out and then has its default.\n\n## The top level\n\n",
        fields_table(params.Params, required=written_keys(params.Params) | keys_of_dvc()),
        "\n## prepare\n\n",
        section_table(PrepareConfig),
        "\n### prepare.table\n\n",
        section_table(TableConfig),
        "\n## models\n\n`models:` maps names to entries. Each entry is one training.\n\n",
        section_table(sections.ModelConfig),
        "\nThe fields that `overrides` may set are on the page [Models](models.md).\n",
        "\n## train\n\nThe keys of the common recipe and of the `train` of an entry. `preset` beside them names a\n"
        "[preset](#presets). Each recipe has exactly one of `epochs`, `steps` and `minutes`.\n\n",
        fields_table(recipe.TrainConfig),
        "\n### distill\n\n",
        fields_table(recipe.DistillConfig),
        "\n### freeze\n\n`freeze` is a list of phases.\n\n",
        fields_table(recipe.FreezeConfig),
        "\n## augmentation\n\n`augmentation` is a list. Each entry has a `name` from this section and parameters of\n"
        "that name.\n",
    ]
    for name, kind in augmentation.AUGMENTATIONS.items():
        parts.append(f"\n### {name}\n\n{summary(kind)}\n\n{fields_table(kind)}")
    parts.append("\n## export\n\n" + section_table(sections.ExportConfig))
    parts.append("\n## evaluate\n\n" + section_table(sections.EvaluateConfig))
    parts.append("\n## register.gate\n\n" + section_table(sections.GateConfig))
    parts.append("\n## tracking\n\n" + section_table(sections.TrackingConfig))
    parts.append(
        "\n## Presets\n\nA preset stands for these values. A key that is written beside `preset` wins.\n"
    )
    for name, values in PRESETS.items():
        rows = [[f"`{key}`", f"`{json.dumps(value)}`"] for key, value in values.items()]
        parts.append(f"\n### {name}\n\n{table(['key', 'value'], rows)}")
    return "".join(parts)


def section_table(kind: type) -> str:
    return fields_table(kind, required=written_keys(kind))


def written_keys(kind: type) -> set[str]:
    """Returns the keys of a section that must be in params.yaml."""
    return {field.name for field in dataclasses.fields(kind) if not may_be_left_out(field)}


def keys_of_dvc() -> set[str]:
    """Returns the keys that dvc.yaml names at the top level of params.yaml: DVC refuses a file without them."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    listed = [name for stage in stages for name in stage.get("do", stage).get("params", [])]
    return {name for name in listed if isinstance(name, str) and "." not in name}


FAMILIES = (
    specs.ResNetSpec,
    specs.ViTSpec,
    specs.HybridSpec,
    specs.BoTNetSpec,
    specs.CoAtNetSpec,
    specs.ConformerSpec,
)
SHARED = (specs.Convolutions, specs.Encoder)


def models_page() -> str:
    rows = [
        [row.name, row.family, f"{row.parameters:,}", f"{row.gmac:.3g}", str(row.image_size), row.reference]
        for row in list_models()
    ]
    head = ["variant", "family", "parameters", "GMAC", "image size", "source of the numbers"]
    parts = [
        "# Models\n\n",
        NOTE,
        "`visionpipe models` prints the two tables of this page. `variant:` of an entry of `models:` takes a name\n"
        "from the first table, `init:` takes a name from the second.\n\n## Variants\n\n",
        "Parameters are the trainable ones. GMAC are billions of multiply-accumulates for one image. Both are counted\n"
        "at the image size of the row.\n\n",
        table(head, rows),
        "\n## Published checkpoints\n\nAccuracies are top-1 on the validation images of ImageNet-1k, in per cent, as\n"
        "the source prints them.\n\n",
        table(
            ["name", "variant", "overrides", "size", "accuracy", "licence", "source"],
            [
                [
                    f"`{name}`",
                    row.variant,
                    ", ".join(f"`{key}: {value}`" for key, value in row.overrides.items()),
                    str(row.size),
                    "" if row.accuracy is None else str(row.accuracy),
                    row.licence,
                    f"`{row.source}`",
                ]
                for name, row in known.KNOWN.items()
            ],
        ),
        "\n## Fields\n\n`overrides` of an entry, and keywords of `build_model`, change any field of a variant. The\n"
        "defaults below are those of the family; a variant may set others.\n",
    ]
    names = {specs.Convolutions: "Convolutions", specs.Encoder: "Transformer encoder"}
    parts += [f"\n### {names[kind]}\n\n{summary(kind)}\n\n{fields_table(kind)}" for kind in SHARED]
    for kind in FAMILIES:
        inherited = {
            field.name for base in kind.__mro__[1:] if base in SHARED for field in dataclasses.fields(base)
        }
        own = [field.name for field in dataclasses.fields(kind) if field.name not in inherited]
        bases = [f"[{names[base]}](#{slug(names[base])})" for base in kind.__mro__[1:] if base in SHARED]
        also = f"All fields of {' and '.join(bases)}" if bases else ""
        also += ("; and:" if own else ".") if also else ""
        body = fields_table(kind, own) if own else ""
        parts.append(f"\n### {kind.family}\n\n{summary(kind)}\n\n{also}\n\n{body}")
    return "".join(parts)


GROUPS = {
    "A project": ("init", "download", "lock", "params"),
    "The stages": ("prepare", "train", "export", "evaluate", "register"),
    "Before and after a training": ("doctor", "models", "preview", "probe", "compare"),
    "Versions": ("check", "promote", "rollback", "lineage", "prune"),
    "Answers": ("serve", "predict", "container"),
}


def cli_page() -> str:
    top = options.parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    grouped = {name for group in GROUPS.values() for name in group}
    missing = set(commands.choices) - grouped
    assert not missing, f"add {', '.join(sorted(missing))} to GROUPS in docs/generate.py"
    parts = [
        "# Command line\n\n",
        NOTE,
        "A mistake of yours is explained in one line, and the exit code is 1. Wrong usage of the command line exits\n"
        "with 2. `visionpipe --debug COMMAND` shows the traceback of an error.\n",
    ]
    for title, names in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for name in (name for name in names if name in commands.choices):
            command = commands.choices[name]
            usage = " ".join(command.format_usage().removeprefix("usage: ").split())
            parts.append(f"\n### {name}\n\n{capitalised(texts[name])}\n\n```text\n{wrapped(usage)}\n```\n")
            rows = [
                [
                    spelled(action),
                    capitalised((action.help or "").replace("%(default)s", str(action.default))),
                ]
                for action in command._actions
                if action.dest != "help"
            ]
            parts.append("\n" + table(["argument", "meaning"], rows) if rows else "")
    return "".join(parts)


def spelled(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    return f"`{action.option_strings[-1]}{'' if action.nargs == 0 else f' {value}'}`"


def wrapped(usage: str) -> str:
    return textwrap.fill(usage, 88, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


PUBLIC = {
    "A project": (("visionpipe", "open_project"), ("visionpipe.api", "Project")),
    "A model that answers": (
        ("visionpipe", "load"),
        ("visionpipe.api", "Predictor"),
        ("visionpipe.api", "Prediction"),
        ("visionpipe.artifact.classifier", "Classifier"),
    ),
    "Models": (
        ("visionpipe.models", "build_model"),
        ("visionpipe.models", "list_models"),
        ("visionpipe.models", "Listed"),
        ("visionpipe.acceleration.network", "accelerate"),
        ("visionpipe.models.surgery", "with_image_size"),
        ("visionpipe.models.surgery", "features"),
        ("visionpipe.models.surgery", "attention_maps"),
    ),
    "Published weights": (
        ("visionpipe.weights", "load_weights"),
        ("visionpipe.weights", "resolve"),
        ("visionpipe.weights", "Report"),
        ("visionpipe.weights", "Preprocessing"),
    ),
}


def python_page() -> str:
    parts = ["# Python\n\n", NOTE]
    for title, names in PUBLIC.items():
        entries = [entry(module, name) for module, name in names if exists(module, name)]
        if entries:
            parts.append(f"\n## {title}\n" + "".join(entries))
    return "".join(parts).replace("\n\n\n", "\n\n")


def exists(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def entry(module: str, name: str) -> str:
    """Returns the signature and the docstring of a function, or of a class with its public methods."""
    thing = getattr(importlib.import_module(module), name)
    code = f"from {module} import {name}\n\n{signature(name, thing)}"
    text = f"\n### {name}\n\n```python\n{code}\n```\n\n{markdown(thing)}\n"
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if method.startswith("_") or not (callable(value) or isinstance(value, property)):
                continue
            if isinstance(value, property):
                text += f"\n**`{method}`**: {markdown(value)}\n"
            else:
                shown_signature = signature(method, value).replace("self, ", "").replace("(self)", "()")
                text += f"\n```python\n{shown_signature}\n```\n\n{markdown(value)}\n"
    return text


def signature(name: str, thing: Any) -> str:
    text = f"{name}{inspect.signature(thing)}".removesuffix(" -> None")
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).replace(
        "'", '"'
    )  # annotations are names, defaults are texts
    text = text.replace("keras.src.models.model.Model", "keras.Model")
    text = re.sub(r"\b(pathlib|collections\.abc|numpy|visionpipe(\.\w+)+|typing)\.", "", text)
    if len(text) <= 90:
        return text
    head, _, rest = text.partition("(")
    inner, _, tail = rest.rpartition(")")
    pieces = re.split(r", (?![^\[\(]*[\]\)])", inner)
    return f"{head}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){tail}"


def markdown(thing: Any) -> str:
    """Returns a docstring as Markdown: sections become lists."""
    text = inspect.cleandoc(thing.__doc__ or "")
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        title, _, body = paragraph.partition("\n")
        if title in ("Args:", "Attributes:", "Returns:", "Raises:"):
            entries = re.split(r"\n(?=\S)", textwrap.dedent(body))
            entries = [" ".join(entry.split()) for entry in entries]
            if title == "Returns:":
                lines.append(f"Returns: {' '.join(entries)}")
            else:
                marked = [
                    re.sub(r"^([\w, ]+): ", lambda m: f"`{m[1].replace(', ', '`, `')}`: ", e) for e in entries
                ]
                lines.append(f"{title}\n\n" + "\n".join(f"- {e}" for e in marked))
        else:
            lines.append("\n".join(line.strip() for line in paragraph.splitlines()))
    return "\n\n".join(lines)


# Limits of the server -----------------------------------------------------------------------------------------------

PACKAGE = ROOT / "visionpipe"
LIMITED = ("serving", "data/headers.py")  # where limits of the server and of image files are


def options_table() -> str:
    rows = []
    for field in dataclasses.fields(Settings):
        if field.metadata:
            default = "none" if field.default == () else size(field.default)
            rows.append([f"`--{field.name.replace('_', '-')}`", default, capitalised(field.metadata["help"])])
    return table(["option", "default", "meaning"], rows)


def fixed_table() -> str:
    """Returns the numbers in the modules of the server and of the decoder's checks, with the comments beside them."""
    rows = []
    for place in LIMITED:
        for file in sorted((PACKAGE / place).rglob("*.py")) or [PACKAGE / place]:
            for name, value, comment in constants(file):
                where = f"`{file.relative_to(ROOT).as_posix()}` `{name}`"
                unit = " s" if name.endswith("SECONDS") else ""
                rows.append([size(value) + unit, capitalised(comment), where])
    return table(["limit", "of what", "where"], rows)


def constants(file: Path) -> Iterator[tuple[str, int | float, str]]:
    """Yields the numbers at the top of a module: name, value, and the comment in the same lines."""
    text = file.read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        try:
            value = eval(ast.unparse(node.value), {"__builtins__": {}})  # such as 16 * 2**10
        except Exception:  # not a number, or one that another module defines
            continue
        if name.isupper() and isinstance(value, int | float):
            comments = [line.partition("# ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
            yield name, value, " ".join(comment for comment in comments if comment)


def size(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and value >= 10_000 else str(value)


def with_tables(page: Path, tables: dict[str, str]) -> str:
    """Returns the page with new text between `<!-- begin: NAME -->` and `<!-- end: NAME -->`."""
    text = page.read_text()
    for name, content in tables.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        assert begin in text, f"{page} has no part {name}"
        assert end in text, f"{page} has a part {name} without an end"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{content}\n{end}{after}"
    return text


def slug(title: str) -> str:
    return re.sub(r"[^\w-]+", "-", title.lower())


def pages() -> dict[Path, str]:
    """Returns what each generated page must hold."""
    reference = DOCS / "reference"
    http = with_tables(reference / "http.md", {"options": options_table(), "fixed limits": fixed_table()})
    whole: dict[str, Callable[[], str]] = {
        "params": params_page,
        "models": models_page,
        "cli": cli_page,
        "python": python_page,
    }
    return (
        {DOCS / "index.md": index_page()}
        | {reference / f"{name}.md": make() for name, make in whole.items()}
        | {reference / "http.md": http}
    )


def main() -> None:
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
