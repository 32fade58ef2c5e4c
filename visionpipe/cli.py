"""The command line. This module imports no framework, so that `visionpipe --help` answers at once."""

import argparse
import dataclasses
import io
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from visionpipe import __version__
from visionpipe.errors import Interrupted, VisionpipeError, no_room
from visionpipe.escape import visible
from visionpipe.project.paths import STAGES
from visionpipe.serving.settings import Settings

STORE_COMMANDS = ("register", "check", "promote", "rollback", "lineage", "prune")
ADVICE = "make room on the disk, then give the same command again"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: success. 1: an error, which one line explains. 128 + the number of the signal: an interruption. argparse exits
    with 2 after wrong arguments.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may not have all letters of a name
    command, debug = "", False
    try:
        try:
            options = parser().parse_args(arguments)
            if options.command is None:
                print_first_steps()
                return 0
            command, debug = options.command, options.debug
            run(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return failed("interrupted", False, 130)
    except Interrupted as error:
        return failed(str(error), debug, 128 + error.signal)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            discard_output()
            return 128 + signal.SIGPIPE
        reason = explained(error, command)
        if reason is None:
            raise
        return failed(reason, debug, 1)
    return 0


def print_first_steps() -> None:
    """Prints the first commands: in a project to use it, elsewhere to make one."""
    from visionpipe.project.paths import project_root

    root = project_root()
    if root is None:
        print(
            "This folder is not in a visionpipe project. To make one from your images:\n\n"
            "  visionpipe init flowers --images ~/photos    # a folder or zip archive with one folder per class\n"
            "  cd flowers\n"
            "  dvc repro                                    # prepare, train, export, evaluate, register\n"
            "  mlflow ui                                    # compare the models in the browser\n"
            "  visionpipe serve                             # answer requests with the best one\n\n"
            "Without --images, init uses a sample of 6,000 pictures of clothes. All commands: visionpipe --help"
        )
    else:
        print(
            f"The project in {root}:\n\n"
            "  visionpipe params     check params.yaml, and list the trainings\n"
            "  dvc repro             run the stages whose inputs have changed\n"
            "  visionpipe compare    print the trained models side by side\n"
            "  visionpipe serve      answer requests with the champion\n\n"
            "All commands: visionpipe --help"
        )


def open_closed_streams() -> None:
    """Opens streams that the shell has closed (`>&-`) on the null device.

    Otherwise the next opened file would get the number of the stream, and with it the output of libraries and of other
    processes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115  (the lowest free number is the stream's)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def explained(error: Exception, command: str) -> str | None:
    """Explains an error in one line; returns None for a bug of this program, whose traceback should be shown.

    It explains mistakes of the user, errors of the operating system, and unexpected content of the tracking store.
    """
    ours = isinstance(error, VisionpipeError)
    full = no_room(error.__cause__ if ours else error)  # a full disk can be any error of any library
    if full is not None:
        discard_output()
        return f"{file_of(error)} cannot be written ({full}): {ADVICE}"
    if ours:
        return str(error)
    where = f"visionpipe --debug {command} shows where"
    if isinstance(error, OSError):
        file = f": {file_of(error)}" if error.filename is not None else ""
        return f"{error.strerror or error}{file}; {where}"
    of_mlflow = type(error).__module__.startswith("mlflow.")
    of_the_store = command in STORE_COMMANDS and isinstance(error, LookupError | StopIteration | ValueError)
    if of_mlflow or of_the_store:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return f"{command} failed at the content of {store_named()} ({reason}); {where}"
    return None


def store_named() -> str:
    """Names the tracking store, with its address if it has one. It raises nothing, because it explains an error."""
    from visionpipe.tracking.lookup import without_password
    from visionpipe.tracking.store import tracking_uri

    try:
        return f"the tracking store {without_password(tracking_uri())}"
    except (VisionpipeError, OSError):  # the folder was removed, or its name is not possible in an address
        return "the tracking store"


def file_of(error: Exception) -> str:
    """Names the file that a system's error is about: the target of a copy, the final name of a temporary file."""
    from visionpipe.files import without_temporaries

    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return visible(without_temporaries(os.fsdecode(name))) if isinstance(name, str | bytes) else "a file"


def failed(reason: str, debug: bool, code: int) -> int:
    """Prints the reason in one line, and returns the exit code."""
    if debug:
        traceback.print_exc()
    print(f"visionpipe: {reason}", file=sys.stderr)
    return code


def reader_has_gone() -> bool:
    """Whether the process that read this one's output has ended, as after `| head`."""
    ends = select.poll()
    for stream in (sys.stdout, sys.stderr):
        ends.register(stream.fileno(), 0)  # poll reports errors even with no event asked for
    return bool(ends.poll(0))


def discard_output() -> None:
    """Discards output that cannot be printed any more, because Python would print an error about it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="visionpipe", description="Makes a served image classifier from labelled images."
    )
    top.add_argument("--version", action="version", version=f"visionpipe {__version__}")
    top.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    init = add("init", "make a project of your images, or of the sample")
    init.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the project's folder, which is made if it does not exist"
    )
    init.add_argument(
        "--images",
        metavar="PATH",
        type=Path,
        help="a folder or zip archive with one folder per class; default: the sample",
    )
    init.add_argument("--copy", action="store_true", help="copy the images into the project")
    init.add_argument(
        "--pretrained", action="store_true", help="start from published weights, which dvc repro downloads"
    )
    init.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="the library that trains; default: %(default)s",
    )
    add("prepare", "stage: decode, resize and split the images, and write data/prepared")
    for name, text in (
        ("train", "stage: train one entry of models:"),
        ("export", "stage: write the ONNX artifact of a trained model"),
        ("evaluate", "stage: evaluate the exported artifact on the validation and test images"),
    ):
        add(name, text).add_argument("name", metavar="NAME", help="an entry of models: in params.yaml")
    add("register", "stage: complete the MLflow runs, and register the best model that passes the gate")
    add("lock", "write code.lock for the installed code, and print which stages run again and why")
    add("params", "check params.yaml and that its images exist, and print the plan of each training")
    add("models", "print the model variants, and the published checkpoints that fit them")
    preview = add("preview", "draw augmented training images with their labels")
    preview.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the entry of models: whose recipe is used; default: the first",
    )
    probing = add("probe", "measure how well frozen features classify the prepared images")
    probing.add_argument(
        "target",
        nargs="?",
        metavar="NAME|SOURCE",
        help="an entry of models:, or a source of weights; default: all trained entries",
    )
    probing.add_argument("--variant", help="the model variant of a source that does not name it")
    probing.add_argument("--size", type=int, help="resize the images to this height and width")
    add("compare", "print the trained models side by side")
    add("check", "exit with 1 unless a model passed the gate at the last register, and is registered")
    promote = add("promote", "make the challenger the champion if it is better on the same test images")
    promote.add_argument(
        "--new-data",
        action="store_true",
        help="also if the champion cannot be compared, because it has other classes or another image size",
    )
    add("rollback", "make the previous champion the champion again")
    add("lineage", "print what made a version").add_argument(
        "version", help="the number of a version, or an alias"
    )
    serve = add("serve", "answer HTTP requests with a model, and follow its alias")
    serve.add_argument(
        "target",
        nargs="?",
        metavar="MODEL",
        help="models:/NAME@ALIAS, models:/NAME/NUMBER or a folder; default: the champion of the project",
    )
    add_settings(serve)
    predict = add("predict", "label image files, and write a table with one row per file")
    predict.add_argument(
        "paths",
        nargs="*",
        default=["-"],
        metavar="PATH",
        help="a folder, zip archive, image or glob pattern; - or nothing: a list of them on stdin",
    )
    predict.add_argument("--model", metavar="MODEL", help="as for serve")
    predict.add_argument(
        "--output",
        type=Path,
        default=Path("predictions.csv"),
        help="a .csv, .jsonl or .parquet file; default: %(default)s. After an interruption the same command continues",
    )
    predict.add_argument("--probabilities", action="store_true", help="add a column for each class")
    container = add("container", "write a folder to build a Docker image of the server with the model inside")
    container.add_argument("target", nargs="?", metavar="MODEL", help="as for serve")
    container.add_argument(
        "--output", type=Path, default=Path("container"), help="a new folder; default: %(default)s"
    )
    prune = add("prune", "list runs, versions, uploads and checkpoints that nothing needs any more")
    prune.add_argument("--delete", action="store_true", help="remove them")
    return top


def add_settings(serve: argparse.ArgumentParser) -> None:
    """Adds an option for each field of Settings that has a help text."""
    for field in dataclasses.fields(Settings):
        if not field.metadata:
            continue
        name, several = f"--{field.name.replace('_', '-')}", isinstance(field.default, tuple)
        serve.add_argument(
            name,
            type=str if several else type(field.default),
            action="append" if several else "store",
            help=field.metadata["help"] + ("" if several else f"; default: {field.default}"),
        )


def settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        value = getattr(options, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return Settings(**given)


def run(options: argparse.Namespace) -> None:
    if options.command == "models":
        from visionpipe.models import costs, known

        print(costs.table())
        print()
        print(known.table())
        return
    from visionpipe.project.paths import champion

    if options.command == "serve":
        from visionpipe.serving.server import serve

        serve(options.target or champion(), settings(options))
        return
    if options.command == "container":
        from visionpipe.commands.container import container

        container(options.target or champion(), options.output)
        return
    if options.command == "predict":
        from visionpipe.commands.predict import predict

        predict(options.paths, options.output, options.model or champion(), options.probabilities)
        return
    if options.command == "init":
        from visionpipe.commands.init import init

        init(options.folder, options.images, options.copy, options.pretrained, options.backend)
        return
    from visionpipe.project.paths import enter_project

    here = Path.cwd()
    enter_project()
    if (
        options.command == "probe"
        and options.target
        and here != Path.cwd()
        and (here / options.target).exists()
    ):
        options.target = str(here / options.target)
    if options.command == "lock":
        from visionpipe.project.lock import write_lock

        print(*write_lock(), sep="\n")
        return
    from visionpipe.project.params import load_params

    params = load_params()
    if options.command in STAGES:
        from visionpipe.project.backend import check_backend
        from visionpipe.project.lock import check_lock

        check_backend(params)
        check_lock(options.command, params.backend)
        die_with_dvc()
    match options.command:
        case "prepare":
            from visionpipe.stages.prepare import prepare

            prepare(params)
        case "train":
            from visionpipe.stages.train import train

            train(options.name, params)
        case "export":
            from visionpipe.stages.export import export

            export(options.name, params)
        case "evaluate":
            from visionpipe.stages.evaluate import evaluate

            evaluate(options.name, params)
        case "register":
            from visionpipe.stages.register import register

            register(params)
        case "probe":
            from visionpipe.commands.probe import probe

            probe(params, options.target, options.variant, options.size)
        case "compare":
            from visionpipe.evaluation.comparison import compare

            compare(params)
        case "params":
            from visionpipe.commands.params import show_params

            show_params(params)
        case "preview":
            from visionpipe.commands.preview import preview

            preview(options.name, params)
        case "check":
            from visionpipe.commands.check import check

            check(params)
        case "promote":
            from visionpipe.commands.promote import promote

            promote(params, options.new_data)
        case "rollback":
            from visionpipe.commands.promote import rollback

            rollback(params)
        case "lineage":
            from visionpipe.commands.lineage import lineage

            lineage(options.version, params)
        case "prune":
            from visionpipe.commands.prune import prune

            prune(params, options.delete)


def die_with_dvc() -> None:
    """Ends this stage when the `dvc` process that started it ends.

    Otherwise the stage of a killed `dvc` would run on, and the next `dvc repro` would start a second one on the same
    files.
    """
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    import psutil

    # The parent may be a shell between DVC and the stage. DVC's children have DVC_STAGE, DVC has not.
    dvc = next(process for process in psutil.Process().parents() if "DVC_STAGE" not in process.environ())
    end = os.pidfd_open(dvc.pid)

    def watch() -> None:
        select.select([end], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch dvc", daemon=True).start()
