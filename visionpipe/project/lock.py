"""`code.lock`: the code and the libraries that each stage of a project runs with.

dvc.yaml depends on entries of this file, and on no source file. So a stage runs again when the code that it imports has
changed. A changed comment, docstring or package version alone does not make a stage run again.

The code of a stage is its import closure: the stage's module, the modules of the package that it imports, also inside
functions, the modules that these import, and so on. A file of the package that one of these modules names in a string
("artifact/pyfunc.py") belongs to the closure too.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from visionpipe import __version__
from visionpipe.data.config import DECISIONS, DECISIONS_HEADER
from visionpipe.errors import LockError
from visionpipe.files import write_bytes
from visionpipe.project.paths import STAGES

LOCK = Path("code.lock")
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGE = Path(__file__).parents[1]
FILE_NAME = re.compile(r"\w+(/\w+)+\.\w+")
SHOWN = 5  # reasons per stage; the others are counted
HEADER = "# Written by visionpipe lock: the code and the libraries that each stage runs with. dvc.yaml depends on it.\n"

# Modules and packages that stages import and that do not change what a stage writes, each with the reason.
WITHOUT_EFFECT = {
    "api": "the interface from Python, which no stage calls",
    "errors": "words of error messages",
    "files": "how files are written, not their content",
    "project.backend": "the choice of the backend and of threads, which are parameters",
    "project.lineage": "hashes, which must stay comparable between versions of the package",
    "project.lock": "hashes of code",
    "project.needs": "refuses impossible orders of trainings",
    "project.params": "reads params.yaml, whose values DVC compares",
    "project.paths": "names of files, which dvc.yaml has too",
    "project.sections": "keys of other stages",
    "project.schema": "refuses wrong types in params.yaml",
    "models.known": "addresses of weights; the key of a training contains the sha256 of the weights",
    "weights.download": "downloads weights; the key of a training contains their sha256",
    "artifact.speed": "writes measurements, which are not DVC outputs",
    "tracking.comparison": "writes a table that is not a DVC output",
    "tracking": "writes to MLflow, which is not a DVC output",
}
WITH_EFFECT = {
    "train": {
        "project.sections": "defaults of keys that params.yaml leaves out",
        "project.backend": "seeds and threads, which change the last bits of the weights",
        "training.presets": "values of recipes, of which params.yaml has only the name",
    },
    "export": {
        "project.sections": "as for train",
        "project.backend": "as for train",
        "artifact.speed": "measures the speeds that `precision: auto` decides by",
    },
    "evaluate": {"project.sections": "as for train"},
    "register": {
        "project.sections": "as for train",
        "tracking": "writes the runs, the versions and the receipt",
    },
}

# Libraries that change the numbers that a stage writes. The stage train has one section for each backend.
LIBRARIES = {
    "prepare": ("numpy", "pillow", "tifffile"),
    "tensorflow": ("keras", "keras-cv", "numpy", "tensorflow"),
    "jax": ("jax", "jaxlib", "keras", "keras-cv", "numpy", "tensorflow"),
    "torch": ("keras", "keras-cv", "numpy", "tensorflow", "torch"),
    "export": ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx"),
    "evaluate": ("numpy", "onnxruntime", "pillow"),
}


def write_lock(folder: Path = Path()) -> list[str]:
    """Writes `folder/code.lock` for the installed package and libraries, and decisions.csv where dvc.yaml misses it.

    The section of a backend that is not installed does not change.

    Returns:
        Lines for the user: which stages run again, and why.

    Raises:
        LockError: code.lock is damaged, or the project is one of visionpipe 0.1.
    """
    refuse_version_0_1(folder)
    old = read_lock(folder) if (folder / LOCK).exists() else None
    before = old or {"visionpipe": None, "stages": {}, "libraries": {}, "files": {}}
    files = {name: digest for stage in STAGES for name, digest in stage_files(stage).items()}
    now = {
        "visionpipe": __version__,
        "stages": {stage: stage_code(stage) for stage in STAGES},
        "libraries": {
            section: installed(section) or before["libraries"].get(section, {}) for section in LIBRARIES
        },
        "files": {name: files[name][:12] for name in sorted(files)},
    }
    if now != old:
        write_bytes(folder / LOCK, (HEADER + yaml.safe_dump(now, sort_keys=False)).encode())
    lines = [f"{LOCK} written, for visionpipe {__version__}"] if old is None else list(changes(before, now))
    dvc_yaml, decisions = folder / "dvc.yaml", folder / DECISIONS
    if (
        not decisions.exists()
        and dvc_yaml.is_file()
        and decisions.name in dvc_yaml.read_text(encoding="utf-8")
    ):
        write_bytes(decisions, DECISIONS_HEADER)
        lines.append(f"{DECISIONS} was missing: it is written without decisions; commit it with {LOCK}")
    return lines


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yields lines about the difference between two contents of code.lock."""
    if before["visionpipe"] != now["visionpipe"]:
        yield f"visionpipe {before['visionpipe']} → {now['visionpipe']}"
    again = []
    for stage in STAGES:
        reasons = []
        if before["stages"].get(stage) != now["stages"][stage]:
            closure = stage_files(stage)
            changed = [
                f"{name} {'changed' if name in before['files'] else 'is new'}"
                for name in sorted(closure)
                if before["files"].get(name) != closure[name][:12]
            ]
            reasons += changed or ["a module is no longer imported"]
        for section in BACKENDS if stage == "train" else (stage,):
            old, new = before["libraries"].get(section, {}), now["libraries"].get(section, {})
            where = f" (backend: {section})" if stage == "train" else ""
            reasons += [
                f"{package} {old.get(package, 'not installed')} → {version}{where}"
                for package, version in new.items()
                if old.get(package) != version and (old or stage != "train")
            ]
        if reasons:
            again.append(stage)
            more = f" and {len(reasons) - SHOWN} more (git diff {LOCK})" if len(reasons) > SHOWN else ""
            yield f"{stage}: {', '.join(reasons[:SHOWN])}{more}"
    if again:
        yield "dvc repro runs these stages again, and those after them whose inputs change"
    else:
        yield f"{LOCK} is up to date: no stage runs again"


def read_lock(folder: Path = Path()) -> dict[str, Any]:
    """Reads `folder/code.lock`.

    Raises:
        LockError: the file is missing or damaged, or the project is one of visionpipe 0.1.
    """
    path = folder / LOCK
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse_version_0_1(folder)
        raise LockError(f"there is no {path}: run visionpipe lock") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    match content:
        case {"visionpipe": str(), "stages": dict(), "libraries": dict(), "files": dict()}:
            return dict(content)
    raise LockError(f"{path} is damaged, perhaps by a merge: remove the file, then run visionpipe lock")


def refuse_version_0_1(folder: Path) -> None:
    """Raises LockError, which says how to move over, for a project of visionpipe 0.1.

    The dvc.yaml of 0.1 lists the source files of the package.
    """
    dvc_yaml = folder / "dvc.yaml"
    if dvc_yaml.is_file() and "- visionpipe/" in dvc_yaml.read_text(encoding="utf-8", errors="replace"):
        raise LockError(
            f"{dvc_yaml} is that of visionpipe 0.1: remove {dvc_yaml}, then run visionpipe init {folder}, which adds "
            f"the dvc.yaml and code.lock of {__version__} and does not change params.yaml"
        )


def check_lock(stage: str, backend: str) -> None:
    """Raises LockError if a stage would run with other code or other libraries than those in code.lock.

    The error names the first difference, and says what to do.
    """
    lock = read_lock()
    if lock["stages"].get(stage) != stage_code(stage):
        closure = stage_files(stage)
        name = next((n for n in sorted(closure) if lock["files"].get(n) != closure[n][:12]), "the package")
        other = lock["visionpipe"]
        back = f", or install visionpipe {other}" if other != __version__ else ""
        raise LockError(
            f"{stage}: {name} has changed since {LOCK} was written: run visionpipe lock, which prints what runs "
            f"again{back}"
        )
    section = backend if stage == "train" else stage
    locked, here = lock["libraries"].get(section, {}), installed(section)
    for package in LIBRARIES.get(section, ()):
        if locked.get(package) != here.get(package):
            raise LockError(
                f"{stage}: {package} is {here.get(package, 'not installed')}, but {LOCK} has "
                f"{locked.get(package, 'none')}: run visionpipe lock, which prints what runs again, or install the "
                f"version of {LOCK}"
            )


def installed(section: str) -> dict[str, str]:
    """Returns package → public version for a section of LIBRARIES; empty if one of the packages is not installed."""
    try:
        return {name: Version(metadata.version(name)).public for name in LIBRARIES.get(section, ())}
    except metadata.PackageNotFoundError:
        return {}


@functools.cache
def stage_code(stage: str) -> str:
    """Computes the sha256 of the code of a stage."""
    return hashlib.sha256("\n".join(f"{n} {d}" for n, d in stage_files(stage).items()).encode()).hexdigest()


@functools.cache
def stage_files(stage: str) -> dict[str, str]:
    """Returns file → sha256 for a stage's import closure; a file's name is like `visionpipe/data/decode.py`."""
    effective = WITH_EFFECT.get(stage, {})
    without = [name for name in WITHOUT_EFFECT if name not in effective]
    # A module of WITH_EFFECT is always in the closure; of a package, only the modules that the stage imports.
    todo = {f"stages/{stage}.py", *filter(None, map(module_file, effective))}
    closure: set[str] = set()
    while todo:
        file = todo.pop()
        if file in closure or any(belongs(file, name) for name in without):
            continue
        closure.add(file)
        todo |= imported(file) if file.endswith(".py") else set()
    return {f"{PACKAGE.name}/{file}": digest(file) for file in sorted(closure)}


def belongs(file: str, module: str) -> bool:
    """Whether a file is the module of this dotted name, or is in the package of this name."""
    path = module.replace(".", "/")
    return file == f"{path}.py" or file.startswith(f"{path}/")


def module_file(name: str) -> str | None:
    """Returns the file of a module, given by its dotted name below the package; None if there is no such module."""
    path = name.replace(".", "/")
    candidates = (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py")
    return next((file for file in candidates if (PACKAGE / file).is_file()), None)


@functools.cache
def imported(file: str) -> set[str]:
    """Returns the files that a module of the package imports or names, and the `__init__.py` of their packages."""
    modules: set[str] = set()
    files: set[str | None] = set()
    for node in running_nodes(tree_of(file)):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                modules |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Import(names=names):
                modules |= {alias.name for alias in names}
            case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]) if start.startswith(
                "visionpipe."
            ):
                room = start.rpartition(".")[0]  # one of its modules is imported by a computed name
                inside = (PACKAGE.parent / room.replace(".", "/")).glob("*.py")
                modules |= {f"{room}.{path.stem}" for path in inside if path.stem != "__init__"}
            case ast.Constant(value=str(text)) if FILE_NAME.fullmatch(text) and (PACKAGE / text).is_file():
                files.add(text)
    for module in modules:
        parts = module.split(".")
        if parts[0] == PACKAGE.name:
            files |= {module_file(".".join(parts[1:end])) for end in range(1, len(parts) + 1)}
    return set(filter(None, files))


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes of a tree that run, without the blocks `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from running_nodes(child)


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def digest(file: str) -> str:
    """Computes the sha256 of a file; of a Python file without comments, docstrings, layout and `__version__`."""
    if not file.endswith(".py"):
        return hashlib.sha256((PACKAGE / file).read_bytes()).hexdigest()
    return hashlib.sha256(code_of(tree_of(file)).encode()).hexdigest()


def code_of(node: Any) -> str:
    """Converts a syntax tree into a text that is the same on every version of Python.

    `ast.dump` is not used, because later versions of Python have more fields and omit empty ones.
    """
    if isinstance(node, list):
        return f"[{','.join(map(code_of, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            value = [statement for statement in value if not is_text(statement)]
        if name not in ("ctx", "kind", "type_comment") and value is not None and value != []:
            fields.append(f"{name}={code_of(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or sets `__version__`."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__version__")]):
            return True
    return False
