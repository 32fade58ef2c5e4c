"""`visionpipe promote` and `visionpipe rollback`: move the alias `champion`, and log each move.

The log is stored with the registered model, as one tag per move. So all users of the registry see the same log.
"""

import getpass
import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

from visionpipe.artifact.classifier import Classifier
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import RegistryError
from visionpipe.files import temporary_folder
from visionpipe.project.params import Params
from visionpipe.tasks import TASKS
from visionpipe.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    aliases,
    all_versions,
    registered_model,
    version_by_alias,
)
from visionpipe.tracking.store import Store, alone, connect
from visionpipe.tracking.verification import download_classifier, made_of, verify_version

LOG_TAG = "promotion."


@dataclass(frozen=True)
class Move:
    """One entry of the log: `champion` moved from the version `before` (None for no version) to the version `to`."""

    action: str
    before: str | None
    to: str
    time: str
    by: str


def promote(params: Params, new_data: bool = False) -> None:
    """Makes the challenger the champion if it is better on the prepared test images.

    The challenger's files are verified first.

    Args:
        new_data: promote even if the champion cannot be compared: it has other classes, or prepares images in another
            way, or its files are lost.

    Raises:
        RegistryError: there is no challenger, it is not better, it cannot be compared, or its files are damaged.
    """
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        challenger, champion = version_by_alias(store, CHALLENGER), version_by_alias(store, CHAMPION)
        if challenger is None:
            raise RegistryError(
                f"{store.model_name} has no challenger in {store.uri}: run visionpipe register"
            )
        if champion is not None and champion.version == challenger.version:
            print(f"version {champion.version} is both champion and challenger: nothing to promote")
            return
        data = open_prepared(PREPARED)
        words = TASKS[data.task].score.replace("_", " ")
        new, old = str(challenger.version), str(champion.version) if champion else None
        scores = {new: test_score(store, challenger, data)}
        if scores[new] is None:
            raise RegistryError(f"{other_images(new)}, so it cannot be evaluated: run dvc repro")
        print(f"{CHALLENGER:<10} version {new} ({made_of(challenger)}): test {words} {scores[new]:.4f}")
        if champion is not None:
            scores[str(old)] = champion_score(store, champion, data, new_data)
        compared = {number: score for number, score in scores.items() if score is not None}
        if old in compared and compared[new] <= compared[old]:
            raise RegistryError(
                f"version {new} is not better than version {old} on the same test images, so it was not promoted"
            )
        verify_version(store, challenger)
        move_champion(store, new, old, "promote", compared)


def champion_score(store: Store, champion: Any, data: Prepared, new_data: bool) -> float | None:
    """Returns the champion's test score; None if it cannot be measured and `new_data` permits that.

    Raises:
        RegistryError: it cannot be measured.
    """
    number = str(champion.version)
    try:
        score, reason = test_score(store, champion, data), other_images(number)
    except RegistryError as error:
        score, reason = None, str(error)
    if score is None and not new_data:
        raise RegistryError(
            f"{reason}, so the two versions cannot be compared: visionpipe promote --new-data promotes without a "
            f"comparison"
        )
    words = TASKS[data.task].score.replace("_", " ")
    outcome = "not compared: " + reason if score is None else f"test {words} {score:.4f}"
    print(f"{CHAMPION:<10} version {number} ({made_of(champion)}): {outcome}")
    return score


def other_images(number: str) -> str:
    return f"version {number} has another task or other classes than {PREPARED}, or prepares images in another way"


def rollback(params: Params) -> None:
    """Makes the previous champion the champion again, after verifying its files.

    Raises:
        RegistryError: there is no previous champion, or its files are damaged.
    """
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        champion = aliases(store).get(CHAMPION)
        history = champions_before(promotions(store), champion)
        if champion is None or not history:
            raise RegistryError(
                f"{store.model_name} has no earlier champion in {store.uri}: nothing was changed"
            )
        version = all_versions(store).get(history[-1])
        if version is None:
            raise RegistryError(
                f"version {history[-1]} of {store.model_name}, the champion before version {champion}, was deleted: "
                f"set the alias {CHAMPION} to another version in the MLflow UI"
            )
        verify_version(store, version)
        move_champion(store, history[-1], champion, "rollback", {})


def test_score(store: Store, version: Any, data: Prepared) -> float | None:
    """Measures a registered version's score on the prepared test split, in [0, 1].

    Returns None if the version has another task or other classes, or takes images of another size, or prepares them in
    another way.
    """
    with temporary_folder() as folder:
        classifier = Classifier(download_classifier(store, version, folder))
    same = (classifier.framing, classifier.decoding) == (data.framing, data.decoding)
    if (classifier.task.name, classifier.labels) != (data.task, data.classes) or not same:
        return None
    return classifier.task.score_of(classifier.parts(data.images("test"), data.labels("test")))


def move_champion(store: Store, to: str, before: str | None, action: str, scores: dict[str, float]) -> None:
    """Moves the alias `champion`. The log entry is written first, so that no move is missing from the log."""
    entry = {
        "action": action,
        "from": before,
        "to": to,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "by": user(),
        "test_accuracy": scores,
    }
    last = max((int(name.removeprefix(LOG_TAG)[:4]) for name in log_tags(store)), default=0)
    # The random suffix distinguishes the entries of two people who promote at the same time.
    name = f"{LOG_TAG}{last + 1:04d}.{secrets.token_hex(4)}"
    store.client.set_registered_model_tag(store.model_name, name, json.dumps(entry))
    store.client.set_registered_model_alias(store.model_name, CHAMPION, to)
    print(f"champion: version {before or 'none'} → version {to}")


def user() -> str:
    """Returns the user's name, or the number of a user without a name, as in many containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"user {os.getuid()}"


def log_tags(store: Store) -> dict[str, str]:
    """Returns the tags of the log, oldest first, without other tags that begin like them."""
    model = registered_model(store)
    tags = sorted(model.tags.items()) if model else []
    return {
        name: value
        for name, value in tags
        if name.startswith(LOG_TAG) and name[len(LOG_TAG) :][:4].isdecimal()
    }


def promotions(store: Store) -> list[Move]:
    """Returns all moves of `champion` after the first registration, oldest first.

    Raises:
        RegistryError: a tag of the log is damaged.
    """
    moves = []
    for name, value in log_tags(store).items():
        try:
            entry = json.loads(value)
            before = None if entry["from"] is None else str(entry["from"])
            moves.append(
                Move(entry["action"], before, str(entry["to"]), entry.get("time", "?"), entry.get("by", "?"))
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RegistryError(
                f"the tag {name} of {store.model_name} in {store.uri} is not a valid entry of the log of promotions: "
                f"delete the tag in the MLflow UI"
            ) from None
    return moves


def champions_before(log: list[Move], champion: str | None) -> list[str]:
    """Returns the former champions that rollbacks go back to, beginning with the last of the list."""
    stack: list[str] = []
    after = [*(move.before for move in log), champion][1:]
    for move, then in zip(log, after, strict=True):
        if then == move.before and then != move.to:
            continue  # this move was interrupted after its log entry and before its alias
        if move.action == "promote" and move.before:
            stack.append(move.before)
        elif move.action == "rollback" and stack:
            stack.pop()
    while stack and stack[-1] == champion:
        stack.pop()
    return stack
