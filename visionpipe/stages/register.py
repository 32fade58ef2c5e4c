"""Stage `register`: completes the MLflow run of each model, and registers the best model that passes the gate."""

from typing import Any

from visionpipe.artifact.classifier import Classifier
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import DataError
from visionpipe.escape import without_password
from visionpipe.files import write_json
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, model_folder, report_folder
from visionpipe.tracking.card import model_card
from visionpipe.tracking.comparison import compare
from visionpipe.tracking.receipt import RECEIPT, judge
from visionpipe.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    move_aliases,
    other_data,
    publish,
    version_by_alias,
)
from visionpipe.tracking.runs import complete, record, record_precision
from visionpipe.tracking.store import Store, alone, connect, tracking_uri
from visionpipe.tracking.tags import measured_speed, precision, version_tags
from visionpipe.tracking.verification import GOLDEN_IMAGES, Golden, golden_answers, made_of


def register(params: Params) -> None:
    """Completes the runs, registers the best model, and writes the receipt and `comparison.md`.

    A repetition, also after an interruption, makes nothing twice. After the tracking store was deleted it makes
    everything again from the files.

    Raises:
        DataError: the validation split is empty.
        RegistryError: the tracking store is not usable.
    """
    receipt = judge(params)
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        runs = {}
        for name in params.models:
            runs[name] = record(store, model_folder(name))
            complete(store, runs[name], report_folder(name), measured_speed(name, params))
            record_precision(store, runs[name], precision(name))
        chosen = receipt["chosen"]
        if chosen is not None:
            tags = version_tags(chosen)
            version = publish(
                store,
                runs[chosen],
                chosen,
                artifact_folder(chosen),
                model_card(chosen, params, precision(chosen)),
                golden(chosen),
                tags,
            )
            name_commit(store, version, tags)
            moved = move_aliases(store, version)
            print(f"registered: {params.tracking.model} version {version.version} is {chosen}")
            print(alias_summary(store, moved))
    write_json(RECEIPT, receipt)
    compare(params)
    if chosen is None:
        print("\n" + "!" * 100)
        for name, model in receipt["models"].items():
            print(f"!! {name} does not pass the gate: {'; '.join(model['failures'])}")
        print("!! NOTHING WAS REGISTERED, and no alias was moved. Improve a model, or lower register.gate.")
        print("!" * 100)
    print(f"tracking store: {without_password(tracking_uri())}")


def name_commit(store: Store, version: Any, tags: dict[str, str]) -> None:
    """Adds the commit that makes the model to a version that was registered before the commit was made."""
    if "git_note" in version.tags and "git_note" not in tags:
        for name in ("git_commit", "git_dirty"):
            store.client.set_model_version_tag(store.model_name, version.version, name, tags[name])
        store.client.delete_model_version_tag(store.model_name, version.version, "git_note")


def alias_summary(store: Store, moved: list[str]) -> str:
    """Returns lines about champion and challenger, and how to promote if they were trained on different data."""
    champion, challenger = version_by_alias(store, CHAMPION), version_by_alias(store, CHALLENGER)
    line = ", ".join(
        f"{alias} is version {version.version} ({made_of(version)}){' now' if alias in moved else ''}"
        for alias, version in ((CHAMPION, champion), (CHALLENGER, challenger))
        if version is not None
    )
    if champion and challenger and other_data(champion, challenger):
        line += (
            f"\nthe champion was trained on other data: visionpipe promote compares both on the present test images; "
            f"if the classes or the image size differ, visionpipe promote --new-data makes version "
            f"{challenger.version} the champion"
        )
    return line


def golden(name: str) -> Golden:
    """Returns the exported model's answers to a few validation images."""
    images = open_prepared(PREPARED, verify=False).images("validation")[:GOLDEN_IMAGES]
    if not len(images):
        raise DataError("the validation split is empty: run dvc repro")
    return golden_answers(Classifier(artifact_folder(name)), images)
