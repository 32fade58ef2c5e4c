"""`code.lock`: the code and the libraries that each stage of a project runs with.

dvc.yaml depends on entries of this file and on no source file. So a stage runs again when the code that it imports has
changed, and never because of a comment, a docstring or another version of the package alone.

The code of a stage is its import closure: its module, the modules of the package that this one imports, also inside
functions, and so on. A file of the package that one of these modules names in a string ("artifact/pyfunc.py") belongs
to the closure too.
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
from visionpipe.errors import LockError
from visionpipe.files import write_bytes
from visionpipe.project.paths import STAGES

LOCK = Path("code.lock")
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGE = Path(__file__).parents[1]
FILE_NAME = re.compile(r"\w+(/\w+)+\.\w+")
SHOWN = 5  # reasons why a stage runs again
HEADER = "# Written by visionpipe lock: the code and the libraries that each stage runs with. dvc.yaml depends on it.\n"

# Modules and rooms that a stage imports and that cannot change what the stage writes.
WITHOUT_EFFECT = {
    "api": "the interface from Python, which no stage calls",
    "errors": "words of error messages",
    "files": "how files are written, not their content",
    "project.backend": "the choice of the backend, which is a parameter, and of threads",
    "project.lineage": "hashes, which are compared with those of other versions",
    "project.lock": "hashes of code",
    "project.needs": "refuses an order of trainings that cannot be",
    "project.params": "reads params.yaml, whose values DVC compares itself",
    "project.paths": "names of files, which dvc.yaml has too",
    "project.schema": "refuses wrong types in params.yaml",
    "models.known": "addresses of weights; the key of a training has the sha256 of the weights",
    "weights.download": "fetches weights; the key of a training has their sha256",
    "artifact.speed": "measures into a folder that is no output",
    "evaluation.comparison": "writes a table that is no output",
    "tracking": "fills MLflow, whose content is no output",
}
WITH_EFFECT = {
    "train": {
        "project.backend": "seeds and threads, which show in the last bits of the weights",
        "training.presets": "values of recipes, of which params.yaml has the name alone",
    },
    "export": {"project.backend": "as for train"},
    "register": {"tracking": "writes the runs, the versions and the receipt"},
}

# Libraries that decide numbers. `train` has one section for each backend.
LIBRARIES = {
    "prepare": ("numpy", "pillow"),
    "tensorflow": ("keras", "keras-cv", "numpy", "tensorflow"),
    "jax": ("jax", "jaxlib", "keras", "keras-cv", "numpy", "tensorflow"),
    "torch": ("keras", "keras-cv", "numpy", "tensorflow", "torch"),
    "export": ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx"),
    "evaluate": ("numpy", "onnxruntime", "pillow"),
}


def write_lock(folder: Path = Path()) -> list[str]:
    """Writes `folder/code.lock` for the installed package and libraries.

    The section of a backend that is not installed stays as it is.

    Returns:
        Lines for the user: which stages run again, and why.
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
    if old is None:
        return [f"{LOCK} written, for visionpipe {__version__}"]
    return list(changes(before, now))


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yields what `write_lock` says about two contents of code.lock."""
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
    """Says how a project of visionpipe 0.1 moves over: its dvc.yaml listed the files of the package.

    Raises:
        LockError: dvc.yaml does.
    """
    dvc_yaml = folder / "dvc.yaml"
    if dvc_yaml.is_file() and "- visionpipe/" in dvc_yaml.read_text(encoding="utf-8", errors="replace"):
        raise LockError(
            f"{dvc_yaml} is that of visionpipe 0.1: remove {dvc_yaml}, then run visionpipe init {folder}, which adds "
            f"the present dvc.yaml and code.lock and leaves params.yaml as it is"
        )


def check_lock(stage: str, backend: str) -> None:
    """Refuses to run a stage with other code or other libraries than code.lock names.

    Raises:
        LockError: the first difference, and what to do about it.
    """
    lock = read_lock()
    if lock["stages"].get(stage) != stage_code(stage):
        closure = stage_files(stage)
        name = next((n for n in sorted(closure) if lock["files"].get(n) != closure[n][:12]), "the package")
        other = lock["visionpipe"]
        back = f", or install visionpipe {other}" if other != __version__ else ""
        raise LockError(
            f"{stage}: {name} is not as {LOCK} has it: run visionpipe lock to see what runs again{back}"
        )
    section = backend if stage == "train" else stage
    locked, here = lock["libraries"].get(section, {}), installed(section)
    for package in LIBRARIES.get(section, ()):
        if locked.get(package) != here.get(package):
            raise LockError(
                f"{stage}: {package} is {here.get(package, 'not installed')}, and {LOCK} has "
                f"{locked.get(package, 'none')}: run visionpipe lock to see what runs again, or install that version"
            )


def installed(section: str) -> dict[str, str]:
    """Returns package → public version of a section of LIBRARIES; empty where a package is not installed."""
    try:
        return {name: Version(metadata.version(name)).public for name in LIBRARIES.get(section, ())}
    except metadata.PackageNotFoundError:
        return {}


@functools.cache
def stage_code(stage: str) -> str:
    """Computes one sha256 of the code of a stage."""
    return hashlib.sha256("\n".join(f"{n} {d}" for n, d in stage_files(stage).items()).encode()).hexdigest()


@functools.cache
def stage_files(stage: str) -> dict[str, str]:
    """Returns file → sha256 of a stage's import closure; files are named as `visionpipe/data/decode.py`."""
    effective = WITH_EFFECT.get(stage, {})
    without = [name for name in WITHOUT_EFFECT if name not in effective]
    # A room, unlike a module, is in the closure only as far as the stage imports it.
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
    """Whether a file is the module of this dotted name, or lies in the room of this name."""
    path = module.replace(".", "/")
    return file == f"{path}.py" or file.startswith(f"{path}/")


def module_file(name: str) -> str | None:
    """Returns the file of a dotted name below the package; None where the name is no module."""
    path = name.replace(".", "/")
    candidates = (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py")
    return next((file for file in candidates if (PACKAGE / file).is_file()), None)


@functools.cache
def imported(file: str) -> set[str]:
    """Returns the files that a module of the package imports or names, with the `__init__.py` of their rooms."""
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
                room = start.rpartition(".")[0]  # a module that is imported by a computed name
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
    """Yields the nodes of a tree, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from running_nodes(child)


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def digest(file: str) -> str:
    """Computes the sha256 of a file: of Python without comments, docstrings, layout and the package's version."""
    if not file.endswith(".py"):
        return hashlib.sha256((PACKAGE / file).read_bytes()).hexdigest()
    return hashlib.sha256(code_of(tree_of(file)).encode()).hexdigest()


def code_of(node: Any) -> str:
    """Writes a syntax tree as text that is the same on every version of Python.

    `ast.dump` is not: later versions add fields that are empty, and leave empty ones out.
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
    """Whether a statement is a docstring or the package's version, on which no stage depends."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__version__")]):
            return True
    return False
