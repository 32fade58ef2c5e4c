"""Finds the commit whose checkout makes a model: its code, parameters and data are those that made the model."""

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visionpipe.data.config import DECISIONS
from visionpipe.data.decisions import read_decisions
from visionpipe.errors import ConfigError, DataError
from visionpipe.project.lineage import training_params
from visionpipe.project.params import Params, load_params

INPUTS = ("params.yaml", "dvc.yaml", "code.lock")
# The errors of reading a damaged file of DVC.
NOT_OF_DVC = (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError)
NOT_READABLE = "is damaged, perhaps by conflict markers, so the images that made the model are unknown"
MOST_COMMITS = 500  # that are searched, the newest first
REASONS = (
    (
        "dubious ownership",
        "git refuses this folder, which belongs to another user: see git config safe.directory",
    ),
    ("not a git repository", "this folder is not in a git repository"),
    ("broken", "a branch or tag of this repository is broken: see git fsck"),
    ("bad object", "a branch or tag of this repository is broken: see git fsck"),
    ("does not have any commits yet", "nothing is committed yet"),
)


class NoAnswer(Exception):
    """No commit can be named; the message says why."""


class NoGit(NoAnswer):
    """Git is not installed, or refused a command."""


class Damaged(NoAnswer):
    """A file of DVC is damaged, for example by conflict markers."""


@dataclass(frozen=True)
class Made:
    """The commit of a model, or "none". `note` says why its checkout does not make the model; empty if it does."""

    commit: str
    note: str = ""

    def tags(self) -> dict[str, str]:
        """Returns the tags of a registered version."""
        return {"git_commit": self.commit, "git_dirty": str(bool(self.note)).lower()} | (
            {"git_note": self.note} if self.note else {}
        )


def commit_that_makes(name: str, identity: dict[str, Any]) -> Made:
    """Finds the commit whose checkout makes model `name`: HEAD, or else the newest other commit that does.

    The commit's code.lock names the code and the libraries. The machine's number of cores is not compared, because a
    commit does not decide it.

    identity: what made the model, from a TrainingPlan or a lineage.json.
    """
    try:
        return search(name, identity)
    except NoAnswer as reason:
        return Made("none", str(reason))


def search(name: str, identity: dict[str, Any]) -> Made:
    """Finds the commit, like `commit_that_makes`; raises NoAnswer if git or a file of DVC cannot be read."""
    head = git("log", "-1", "--format=%H").decode().strip()
    if makes(head, name, identity):
        changed = (
            git("status", "--porcelain", "--untracked-files=no", "--", *INPUTS, "*.dvc").decode().split("\n")
        )
        files = ", ".join(line[3:] for line in changed if line)
        return Made(head, f"with uncommitted changes of {files}" if files else "")
    for commit in (
        git("log", "--all", "--format=%H", f"-{MOST_COMMITS}", "--", *INPUTS, str(DECISIONS), "dvc.lock")
        .decode()
        .split()
    ):
        if makes(commit, name, identity):
            return Made(commit)
    shallow = git("rev-parse", "--is-shallow-repository").strip() == b"true"
    clone = "no commit of this shallow clone" if shallow else "no commit"
    return Made(
        "none",
        f"{clone} has the code, parameters and data that made the model: they are uncommitted, or lost",
    )


def makes(commit: str, name: str, identity: dict[str, Any]) -> bool:
    """Whether a checkout of `commit` makes this model."""
    blobs = files_at(commit)
    if not {"params.yaml", "code.lock"} <= blobs.keys():
        return False
    try:
        lock = yaml.safe_load(content(blobs["code.lock"]))
        code, versions = lock["stages"]["train"], lock["libraries"][identity["params"]["backend"]]
        params = params_at(blobs["params.yaml"])
        made_there = training_params(name, params, params.train_config(name), params.model_spec(name))
    except (yaml.YAMLError, LookupError, TypeError, ConfigError):
        return False
    trained = json.loads(json.dumps(made_there))
    return (
        (code, versions) == (identity["code"], identity["versions"])
        and same(identity["params"], trained, {"threads"} if params.threads is None else set())
        and has_data(commit, params.prepare.path)
        and decided_at(commit) == decided(DECISIONS)
    )


def has_data(commit: str, path: str) -> bool:
    """Whether a commit has the images that were prepared in this checkout, or does not record its images."""
    try:
        data = data_at(commit, path)
    except Damaged:  # a checkout of this commit could not reproduce the model
        return False
    return data in (None, data_here(path))


def decided(path: Path) -> set[tuple[str, str, str]]:
    """Returns what the decided rows of a decisions.csv change: (file, verb, value)."""
    return {(row.file, row.verb, row.value) for row in read_decisions(path).rows if row.verb != "keep"}


def decided_at(commit: str) -> set[tuple[str, str, str]] | None:
    """Returns what `decided` returns for the decisions.csv of a commit; None where that one is damaged."""
    blob = files_at(commit).get(str(DECISIONS))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / DECISIONS
        if blob:
            file.write_bytes(content(blob))
        try:
            return decided(file)
        except DataError:
            return None


def same(made: Any, written: Any, but: set[str]) -> bool:
    """Whether `written` has every value of `made`, apart from the keys `but`. It may have additional, newer keys."""
    if isinstance(made, dict) and isinstance(written, dict):
        return all(
            key in but or (key in written and same(value, written[key], but)) for key, value in made.items()
        )
    return bool(made == written)


def data_here(path: str) -> str | None:
    """Returns DVC's md5 of the images that were prepared in this checkout; None if it is not recorded."""
    lock, pointer = Path("dvc.lock"), Path(f"{path}.dvc")
    if lock.is_file() and (locked := locked_data(lock.read_bytes(), path)):
        return locked
    if pointer.is_file():
        return pointed_data(pointer.read_bytes())
    if Path(path).is_file():
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return None


def data_at(commit: str, path: str) -> str | None:
    """Returns the md5 of the images at a commit, from their .dvc file, git or dvc.lock; None if it is in none."""
    files = files_at(commit)
    if f"{path}.dvc" in files:
        return pointed_data(content(files[f"{path}.dvc"]))
    if path in files and not content(files[path]).startswith(b"version https://git-lfs"):
        return hashlib.md5(content(files[path]), usedforsecurity=False).hexdigest()
    return locked_data(content(files["dvc.lock"]), path) if "dvc.lock" in files else None


def pointed_data(pointer: bytes) -> str | None:
    """Reads the md5 of the images from the content of their .dvc file; raises Damaged."""
    try:
        return str(yaml.safe_load(pointer)["outs"][0].get("md5"))
    except NOT_OF_DVC:
        raise Damaged(f"the .dvc file of the images {NOT_READABLE}") from None


def locked_data(lock: bytes, path: str) -> str | None:
    """Reads the md5 of the images from the content of a dvc.lock; raises Damaged."""
    return locked(lock, "prepare", "deps").get(path)


def locked(lock: bytes, stage: str, kind: str) -> dict[str, str | None]:
    """Reads path → md5 of a stage's `deps` or `outs` (`kind`) from the content of a dvc.lock; raises Damaged."""
    try:
        stages = (yaml.safe_load(lock) or {}).get("stages") or {}
        entries = stages[stage].get(kind) or [] if stage in stages else []
        return {entry["path"]: entry.get("md5") for entry in entries}
    except NOT_OF_DVC:
        raise Damaged(f"dvc.lock {NOT_READABLE}") from None


def git(*arguments: str, folder: Path | None = None) -> bytes:
    """Returns the output of a git command in `folder`, by default the current one; raises NoGit if it fails."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, check=False, env=environment
        )
    except OSError:
        raise NoGit("git is not installed") from None
    if result.returncode:
        message = result.stderr.decode(errors="replace")
        last = (message.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        other = f"git {arguments[0]} failed: {last}"
        raise NoGit(next((reason for words, reason in REASONS if words in message), other))
    return result.stdout


@functools.cache
def files_at(commit: str) -> dict[str, str]:
    """Returns path → blob of all files of a commit below the current folder."""
    lines = git("ls-tree", "-r", "-z", commit).decode(errors="surrogateescape").split("\0")
    return {line.split("\t", 1)[1]: line.split()[2] for line in lines if line}


@functools.cache
def content(blob: str) -> bytes:
    """Returns the content of a file in git."""
    return git("cat-file", "blob", blob)


@functools.cache
def params_at(blob: str) -> Params:
    """Loads a params.yaml from git."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_bytes(content(blob))
        return load_params(file)
