"""The command line. This module imports no framework, so that `visionpipe --help` answers at once."""

import argparse
import io
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path

from visionpipe.commands.options import parser, settings
from visionpipe.errors import Interrupted, VisionpipeError, no_room
from visionpipe.escape import visible, without_password
from visionpipe.project.paths import STAGES

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
    print(f"visionpipe: {without_password(reason)}", file=sys.stderr)
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

        predict(
            options.paths,
            options.output,
            options.model or champion(),
            options.probabilities,
            options.follow_links,
        )
        return
    if options.command == "init":
        from visionpipe.commands.init import init

        init(
            options.folder,
            options.images,
            options.copy,
            options.pretrained,
            options.backend,
            options.follow_links,
            options.label,
        )
        return
    if options.command == "download":
        from visionpipe.commands.download import download

        download(options.name, options.path)
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
        from visionpipe.project.hashing import unhashable_of_project
        from visionpipe.project.lock import write_lock

        print(*write_lock(), sep="\n")
        if problem := unhashable_of_project():
            print(f"WARNING: {problem}")
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
        case "doctor":
            from visionpipe.commands.doctor import doctor

            doctor(params)
        case "probe":
            from visionpipe.commands.probe import probe

            probe(params, options.target, options.variant, options.size)
        case "compare":
            from visionpipe.tracking.comparison import compare

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
