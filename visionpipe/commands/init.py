"""`visionpipe init`: makes a project, which is a folder with parameters and without code."""

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from visionpipe import __version__
from visionpipe.data.config import DECISIONS, DECISIONS_HEADER
from visionpipe.data.listing import Record
from visionpipe.errors import ConfigError, DataError
from visionpipe.escape import markdown, visible
from visionpipe.files import write_bytes
from visionpipe.project.backend import PACKAGES
from visionpipe.project.choices import Choices, choose, minutes_text, params_yaml
from visionpipe.project.hashing import unhashable
from visionpipe.project.lock import LOCK, write_lock
from visionpipe.project.machine import this_machine
from visionpipe.project.params import PARAMS_FILE
from visionpipe.project.survey import Survey, listing_of, source_of, survey
from visionpipe.project.table_survey import Guess, guess_columns, is_table
from visionpipe.tasks import TASKS

TEMPLATE = Path(__file__).parents[1] / "project" / "template"
SAMPLE = Path("data/fashion-mini.zip")
COPIES = Path("data/images")
PREPARED = Path("data/prepared")
IDX_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CHUNK = 2**20  # bytes that are copied at once
FILES = ("params.yaml", "dvc.yaml", str(DECISIONS), ".gitignore", ".dvcignore", "README.md")
COMMITTED = (*FILES, str(LOCK), ".dvc/config", ".dvc/.gitignore")


@dataclass
class Project:
    """The folder that becomes a project; `made` and `left` are the files that were written, and that existed."""

    folder: Path
    made: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, name: str | Path, content: bytes) -> None:
        """Writes a file unless it exists."""
        file = self.folder / name
        if os.path.lexists(file):
            self.left.append(str(name))
        else:
            write_bytes(file, content)
            self.made.append(str(name))


def init(
    folder: Path,
    images: Path | None,
    copy: bool,
    pretrained: bool,
    backend: str,
    follow_links: bool = False,
    label: str | None = None,
) -> None:
    """Makes `folder` a project on `images`, or on the sample where none are given.

    With `follow_links` also on what links in the folder of the images lead to; copies need no links. `images` may be a
    table of images; `label` then names the column of the labels, where it is not clear.

    Nothing is overwritten. What an interrupted call has left out is added by the next one.

    Raises:
        ConfigError: the folder cannot become a project.
        DataError: there are no images to train on.
    """
    guess = None
    if images is not None and is_table(images):
        guess = guess_columns(images, label)
        images = guess.folder
    elif label is not None:
        raise ConfigError("--label names a column of the table that --images names: give both")
    check_arguments(folder, images, copy)
    project = Project(folder)
    has_params = os.path.lexists(folder / PARAMS_FILE)
    chosen: Choices | None = None
    if images is None and not pretrained:
        params = sample_params(backend)
    elif not has_params:
        source = images or TEMPLATE / SAMPLE.name
        path = SAMPLE.as_posix() if images is None else path_in_params(folder, source, copy)
        found = survey(source, path, guess, follow_links)
        chosen = choose(found, this_machine(backend), backend, pretrained)
        if follow_links and not copy:
            chosen.params["prepare"]["follow_links"] = True
        params = params_yaml(chosen, heading(found, chosen)).encode()
        print(*found.lines(), "", *described(chosen), "", sep="\n")
    if not has_params:  # the images first: params.yaml is what says that they are complete
        make_folder(folder)
        if images is None:
            project.add(SAMPLE, (TEMPLATE / SAMPLE.name).read_bytes())
        elif copy:
            copy_images(images, folder, guess, follow_links)
        project.add(PARAMS_FILE, params)
    else:
        project.left.append(str(PARAMS_FILE))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        project.add(name, (TEMPLATE / name.removeprefix(".")).read_bytes())
    project.add(DECISIONS, DECISIONS_HEADER)
    project.add("README.md", readme(folder))
    initialise_git_and_dvc(project)
    if os.path.lexists(folder / LOCK):
        project.left.append(str(LOCK))
    else:
        write_lock(folder)
        project.made.append(str(LOCK))
    print(*report(project, images, pretrained, backend, chosen), sep="\n")


def check_arguments(folder: Path, images: Path | None, copy: bool) -> None:
    """Refuses what cannot become a project, before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{visible(str(folder))} is a file: give the name of a folder")
    if shutil.which("git") is None:
        raise ConfigError("git is not installed: install it, for DVC keeps the project's history in it")
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        raise ConfigError(f"{visible(str(present))} cannot be written to: choose another folder")
    if copy and images is None:
        raise ConfigError("--copy copies the images that --images names: give both")
    if images is None:
        return
    if not images.exists():
        raise DataError(f"{visible(str(images))}: there is no such file or folder")
    inside, outside = folder.resolve(), images.resolve()
    if inside.is_relative_to(outside):
        raise ConfigError(
            f"{visible(str(folder))} is in the folder of the images: give the project a folder beside them, for it "
            "writes files of its own"
        )
    if (inside / PREPARED).is_relative_to(outside):
        raise ConfigError(
            f"{visible(str(images))} is where the project writes {PREPARED}: give the images another folder"
        )
    try:
        str(outside).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{visible(os.fsencode(images).decode(errors='backslashreplace'))}: the name is not UTF-8: rename it"
        ) from None


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{visible(str(folder))} cannot be made: {error.strerror}") from None


def path_in_params(folder: Path, images: Path, copy: bool) -> str:
    """Returns the path that params.yaml names: relative for images within the project, else absolute."""
    inside, target = folder.resolve(), images.resolve()
    if target.is_relative_to(inside):
        return target.relative_to(inside).as_posix()
    if copy:
        return copy_of(images).as_posix()
    return target.as_posix()


def copy_of(images: Path) -> Path:
    """Returns where in the project a copy of the images lies."""
    return COPIES if images.is_dir() else COPIES.parent / images.name


def sample_params(backend: str) -> bytes:
    """Returns the params.yaml of visionpipe's own repository, with the backend that was asked for."""
    content = (TEMPLATE / "params.yaml").read_bytes()
    return content.replace(b"\nbackend: tensorflow ", f"\nbackend: {backend} ".encode())


def heading(found: Survey, chosen: Choices) -> list[str]:
    return [
        f"The whole experiment, chosen by visionpipe {__version__} for {found.images:,} images in {len(found.classes)} "
        f"classes and for {chosen.machine}.",
        f"dvc repro takes {minutes_text(chosen.minutes)} in all there. Every value is yours to change; try one without "
        "changing the file: dvc exp run -S train.epochs=20",
    ]


def described(chosen: Choices) -> Iterator[str]:
    """Says what was chosen and why."""
    params, reasons = chosen.params, chosen.reasons
    recipe = params["train"]
    height, width = params["prepare"]["size"]
    yield f"chosen for these images and for {chosen.machine}"
    yield f"  task          {params['task']}: {reasons['task'].partition('; ')[2] or 'each image has one class'}"
    if table := params["prepare"].get("table"):
        columns = ", ".join(f"{key} {visible(str(value))}" for key, value in table.items())
        yield f"  columns       {columns}"
    if "prepare.table" in reasons:
        yield f"  metadata      {reasons['prepare.table'].partition(': ')[2]}: for slices"
    if group := params["prepare"].get("group"):
        yield f"  groups        {visible(group)}: {reasons['prepare.group']}"
    yield f"  image size    {width} × {height}: {reasons['prepare.size'].removeprefix('height, width: ')}"
    for name, model in params["models"].items():
        yield f"  {name:12}  {model['variant']}: {reasons[f'models.{name}']}"
    yield f"  recipe        {recipe['preset']}, {reasons['train.preset']}"
    yield f"  epochs        {recipe['epochs']}: {reasons['train.epochs']}"
    yield f"  batch size    {recipe['batch_size']}: {reasons['train.batch_size']}"
    names = ", ".join(item["name"] for item in recipe["augmentation"])
    yield f"  augmentation  {names}: {reasons['train.augmentation']}"
    key = TASKS[params["task"]].over[0]
    yield f"  gate          {params['register']['gate'][key]:g}: {reasons[f'register.gate.{key}']}"
    yield (
        f"  time          {minutes_text(chosen.training_minutes)} for the trainings, "
        f"{minutes_text(chosen.minutes)} for all of dvc repro"
    )


# Copies ------------------------------------------------------------------------------------------------


def copy_images(images: Path, folder: Path, guess: Guess | None, follow_links: bool) -> None:
    """Copies the images into the project; goes on where an earlier copy was interrupted."""
    target = folder / copy_of(images)
    if images.resolve().is_relative_to(folder.resolve()):
        return
    names = files_of(images, guess, follow_links) if images.is_dir() else []
    pairs = [(images / name, target / name) for name in names] or [(images, target)]
    total = sum(source.stat().st_size for source, _ in pairs)
    with tqdm(desc="copying", total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for source, copied in pairs:
            copy_file(source, copied, bar)


def files_of(images: Path, guess: Guess | None, follow_links: bool) -> list[str]:
    """Returns the files in class folders, the table and the files that it names, the IDX files, or those of the Hub."""
    if guess:
        entries = listing_of("table", images, guess, follow_links).entries
        return [str(guess.columns.path), *(entry.file for entry in entries if isinstance(entry, Record))]
    source = source_of(images, str(images))
    if source == "idx":
        names = [f"{part}-ubyte{end}" for part in IDX_PARTS for end in ("", ".gz")]
        return [name for name in (*names, "classes.txt") if (images / name).is_file()]
    if source == "huggingface":  # its images lie inside of its files
        return [str(path.relative_to(images)) for path in sorted(images.rglob("*")) if path.is_file()]
    return [
        entry.file
        for entry in listing_of(source, images, None, follow_links).entries
        if isinstance(entry, Record)
    ]


def copy_file(source: Path, target: Path, bar: tqdm) -> None:
    """Copies one file beside its target, and renames the copy when it is complete.

    The name of the incomplete copy holds the size and the time of the source: another source begins anew.
    """
    state = source.stat()
    if target.exists():
        if target.stat().st_size != state.st_size:
            raise ConfigError(
                f"{visible(str(target))} exists with another content than {visible(str(source))}: move it away"
            )
        bar.update(state.st_size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:200]}.{state.st_size}-{state.st_mtime_ns}.part")
    with source.open("rb") as reading, part.open("ab") as writing:
        reading.seek(writing.tell())
        bar.update(writing.tell())
        while chunk := reading.read(CHUNK):
            writing.write(chunk)
            bar.update(len(chunk))
        writing.flush()
        os.fsync(writing.fileno())
    part.replace(target)


# Files, git and DVC ------------------------------------------------------------------------------------


def readme(folder: Path) -> bytes:
    text = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    name = markdown(folder.resolve().name)
    return text.replace("{version}", __version__).replace("{name}", name).encode(errors="backslashreplace")


def initialise_git_and_dvc(project: Project) -> None:
    """Makes the folder a DVC project of the git repository around it, or of a new one."""
    folder = project.folder
    top = git(folder, "rev-parse", "--show-toplevel")
    if top.returncode:
        reason = " ".join(top.stderr.split())
        if "not a git repository" not in reason:
            raise ConfigError(f"git refuses {visible(str(folder))}: {reason}")
        if (made := git(folder, "init", "--quiet")).returncode:
            raise ConfigError(f"git init fails in {visible(str(folder))}: {' '.join(made.stderr.split())}")
        project.made.append(".git")
        top = git(folder, "rev-parse", "--show-toplevel")
    if (folder / ".dvc" / "config").exists():
        project.left.append(".dvc")
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    inner = Path(top.stdout.rstrip("\n")).resolve() != folder.resolve()
    # An interrupted call leaves an empty .dvc, which `force` replaces; with a cache in it, DVC refuses.
    begun = (folder / ".dvc").is_dir() and not any((folder / ".dvc").iterdir())
    try:
        Repo.init(str(folder), subdir=inner, force=begun).close()  # `dvc init` itself would ask for updates
    except DvcException as error:
        raise ConfigError(
            f"dvc init fails in {visible(str(folder))}: {' '.join(str(error).split())}"
        ) from None
    project.made.append(".dvc")


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder), *arguments]
    english = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=english)


def report(
    project: Project, images: Path | None, pretrained: bool, backend: str, chosen: Choices | None
) -> Iterator[str]:
    """Says what was made, what was left, and what to do next."""
    folder = project.folder
    if project.made:
        yield f"made in {visible(str(folder))}: {', '.join(project.made)}"
    if project.left:
        yield f"left as it was: {', '.join(project.left)}"
    if str(PARAMS_FILE) in project.left and images is not None:
        yield f"{PARAMS_FILE} exists, so --images had no effect: set prepare.path in it, or move it away first"
    if str(PARAMS_FILE) in project.left and (pretrained or backend != "tensorflow"):
        yield f"{PARAMS_FILE} exists, so --pretrained and --backend had no effect: edit it, or move it away first"
    if (
        "dvc.yaml" in project.left
        and (folder / "dvc.yaml").read_bytes() != (TEMPLATE / "dvc.yaml").read_bytes()
    ):
        yield "dvc.yaml is not that of this version: move it away, and give the same command again for the new one"
    copied = copy_of(images) if images is not None else SAMPLE
    if images is not None and not (folder / copied).exists() and (problem := unhashable(images, folder)):
        yield f"WARNING: {problem}"
    if importlib.util.find_spec(PACKAGES[backend]) is None:
        yield f"{backend} is not installed here: pip install 'visionpipe[{backend}]'"
    yield "next:"
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    yield f"  {enter}dvc repro && mlflow ui" + (f"   # {minutes_text(chosen.minutes)}" if chosen else "")
    yield "  visionpipe serve"
    if copied != SAMPLE and (folder / copied).exists():
        yield f"  dvc add {shlex.quote(copied.as_posix())}   # dvc push and dvc pull share the images; git ignores them"
    committed = [name for name in COMMITTED if (folder / name).exists()]
    if (folder / SAMPLE).exists():
        committed.append(SAMPLE.as_posix())
    yield f"  git add {' '.join(committed)} && git commit -m 'A project on labelled images'"
