"""The options of the command line."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from visionpipe import __version__
from visionpipe.serving.settings import Settings

MODEL = "models:/NAME@ALIAS, models:/NAME/NUMBER or a folder; default: the champion of the project"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="visionpipe", description="Makes a served image classifier from labelled images."
    )
    top.add_argument("--version", action="version", version=f"visionpipe {__version__}")
    top.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    init = add("init", "make a project from your images, or from the sample")
    init.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the project's folder, which is made if it does not exist"
    )
    init.add_argument(
        "--images",
        metavar="PATH",
        type=Path,
        help="a folder or zip archive with one folder per class, or a table of images; default: the sample",
    )
    init.add_argument("--label", metavar="COLUMN", help="the column of the table that holds the classes")
    init.add_argument(
        "--copy", action="store_true", help="copy the images into the project; default: use their path"
    )
    init.add_argument(
        "--follow-links", action="store_true", help="follow links in the folder of the images to elsewhere"
    )
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
        ("train", "stage: train one entry of the section models"),
        ("export", "stage: write the ONNX artifact of a trained model"),
        ("evaluate", "stage: evaluate the exported artifact on the validation and test images"),
    ):
        add(name, text).add_argument(
            "name", metavar="NAME", help="an entry of the section models in params.yaml"
        )
    add("register", "stage: complete the MLflow runs, and register the best model that passes the gate")
    add("lock", "write code.lock for the installed code, and print which stages run again and why")
    add("params", "check params.yaml and that its images exist, and print the plan of each training")
    fetch = add("download", "fetch a data set of the Hugging Face Hub, for prepare.source: huggingface")
    fetch.add_argument("name", metavar="NAME", help="the data set, or SET:CONFIGURATION")
    fetch.add_argument("path", metavar="PATH", type=Path, help="the folder that is made for it")
    add("models", "print the model variants, and the published checkpoints that fit them")
    preview = add(
        "preview", "draw augmented training images with their labels, and print the path of the picture"
    )
    preview.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the entry of the section models whose recipe is used; default: the first",
    )
    add("doctor", "look for wrong labels, copies, shortcuts and bad pictures, and write a page of them")
    probing = add("probe", "measure how well frozen features classify the prepared images")
    probing.add_argument(
        "target",
        nargs="?",
        metavar="NAME|SOURCE",
        help="an entry of the section models, or a source of weights; default: all trained entries",
    )
    probing.add_argument("--variant", help="the model variant, for a source of weights that does not name it")
    probing.add_argument("--size", type=int, help="resize the images to this height and width")
    add("compare", "print the trained models side by side")
    add("check", "exit with 1 unless the last register accepted a model that the store still has")
    promote = add("promote", "make the challenger the champion if it is better on the same test images")
    promote.add_argument(
        "--new-data",
        action="store_true",
        help="promote without a comparison if the champion has other classes or prepares images in another way",
    )
    add("rollback", "make the previous champion the champion again")
    add("lineage", "print the commit, data, code and parameters that made a registered version").add_argument(
        "version", metavar="VERSION", help="the number of a version, or an alias"
    )
    serve = add("serve", "answer HTTP requests with a model, and follow its alias")
    serve.add_argument(
        "target",
        nargs="?",
        metavar="MODEL",
        help=MODEL,
    )
    add_settings(serve)
    predict = add("predict", "label image files, and write a table with one row per file")
    predict.add_argument(
        "paths",
        nargs="*",
        default=["-"],
        metavar="PATH",
        help="a folder, zip archive, image or glob pattern; - or nothing: a list of paths on standard input",
    )
    predict.add_argument("--model", metavar="MODEL", help=MODEL)
    predict.add_argument(
        "--output",
        type=Path,
        default=Path("predictions.csv"),
        help="a .csv, .jsonl or .parquet file; default: %(default)s. After an interruption the same command continues",
    )
    predict.add_argument(
        "--follow-links", action="store_true", help="follow links in folders to files and folders elsewhere"
    )
    predict.add_argument("--probabilities", action="store_true", help="add a column for each class")
    container = add(
        "container", "write a folder from which Docker builds an image with the server and one model"
    )
    container.add_argument("target", nargs="?", metavar="MODEL", help=MODEL)
    container.add_argument(
        "--output", type=Path, default=Path("container"), help="a new folder; default: %(default)s"
    )
    prune = add("prune", "list runs, versions, uploads and checkpoints that nothing needs any more")
    prune.add_argument("--delete", action="store_true", help="remove what is listed")
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
