"""`visionpipe promote` and `visionpipe rollback`: which version serves, and the log of how that changed.

The log lives with the registered model, as one tag per move, so that everybody who uses the registry
sees the same one.
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
    """One entry of the log: `champion` went from the version `before`, or from none, to the version `to`."""

    action: str
    before: str | None
    to: str
    time: str
    by: str


def promote(params: Params, new_data: bool = False) -> None:
    """Makes the challenger the champion if it is better on the present test images and still is what was registered.

    `new_data`: also where the champion cannot answer them, as it knows other classes or another image size, or as its
    files are gone.
    """
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        challenger, champion = version_by_alias(store, CHALLENGER), version_by_alias(store, CHAMPION)
        if challenger is None:
            raise RegistryError(
                f"{store.model_name} has no challenger in {store.uri}: run visionpipe register"
            )
        if champion is not None and champion.version == challenger.version:
            print(f"version {champion.version} is champion and challenger already: nothing to promote")
            return
        data = open_prepared(PREPARED)
        new, old = str(challenger.version), str(champion.version) if champion else None
        scores = {new: test_accuracy(store, challenger, data)}
        if scores[new] is None:
            raise RegistryError(f"{other_images(new)}: the two versions cannot be compared on it")
        print(f"{CHALLENGER:<10} version {new} ({made_of(challenger)}): test accuracy {scores[new]:.4f}")
        if champion is not None:
            scores[str(old)] = champion_accuracy(store, champion, data, new_data)
        compared = {number: score for number, score in scores.items() if score is not None}
        if old in compared and compared[new] <= compared[old]:
            raise RegistryError(
                f"version {new} is not better than version {old} on the same test images: nothing was promoted"
            )
        verify_version(store, challenger)
        move_champion(store, new, old, "promote", compared)


def champion_accuracy(store: Store, champion: Any, data: Prepared, new_data: bool) -> float | None:
    """The champion's test accuracy; None where it has none and `new_data` permits that."""
    number = str(champion.version)
    try:
        score, reason = test_accuracy(store, champion, data), other_images(number)
    except RegistryError as error:
        score, reason = None, str(error)
    if score is None and not new_data:
        raise RegistryError(
            f"{reason}: the two versions cannot be compared on it; visionpipe promote --new-data promotes without"
        )
    said = "not compared: " + reason if score is None else f"test accuracy {score:.4f}"
    print(f"{CHAMPION:<10} version {number} ({made_of(champion)}): {said}")
    return score


def other_images(number: str) -> str:
    return f"version {number} has other classes or another image size than {PREPARED}"


def rollback(params: Params) -> None:
    """Gives `champion` back to the version that had it before the last promotion, once its files are verified."""
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        champion = aliases(store).get(CHAMPION)
        history = champions_before(promotions(store), champion)
        if champion is None or not history:
            raise RegistryError(f"{store.model_name} has no earlier champion to go back to in {store.uri}")
        version = all_versions(store).get(history[-1])
        if version is None:
            raise RegistryError(
                f"version {history[-1]} of {store.model_name}, champion before version {champion}, was deleted: "
                f"give the alias {CHAMPION} to another version in the MLflow UI"
            )
        verify_version(store, version)
        move_champion(store, history[-1], champion, "rollback", {})


def test_accuracy(store: Store, version: Any, data: Prepared) -> float | None:
    """Accuracy of a registered version on the test split that lies prepared here, in [0, 1]; None where it
    knows other classes or takes images of another size or framing.
    """
    with temporary_folder() as folder:
        classifier = Classifier(download_classifier(store, version, folder))
    if classifier.labels != data.classes or classifier.framing != data.framing:
        return None
    answers = classifier.logits(data.images("test")).argmax(axis=1)
    return float((answers == data.labels("test")).mean())


def move_champion(store: Store, to: str, before: str | None, action: str, scores: dict[str, float]) -> None:
    """Writes the log entry first: an alias never moves without one."""
    entry = {
        "action": action,
        "from": before,
        "to": to,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "by": user(),
        "test_accuracy": scores,
    }
    last = max((int(name.removeprefix(LOG_TAG)[:4]) for name in log_tags(store)), default=0)
    # Two people may promote at once: what both write must not have one name.
    name = f"{LOG_TAG}{last + 1:04d}.{secrets.token_hex(4)}"
    store.client.set_registered_model_tag(store.model_name, name, json.dumps(entry))
    store.client.set_registered_model_alias(store.model_name, CHAMPION, to)
    print(f"champion: version {before or 'none'} → version {to}")


def user() -> str:
    """Who runs this: a name, or the number of a user without one, as in many containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"user {os.getuid()}"


def log_tags(store: Store) -> dict[str, str]:
    """The tags that are the log, the oldest first. Others may begin like them."""
    model = registered_model(store)
    tags = sorted(model.tags.items()) if model else []
    return {
        name: value
        for name, value in tags
        if name.startswith(LOG_TAG) and name[len(LOG_TAG) :][:4].isdecimal()
    }


def promotions(store: Store) -> list[Move]:
    """All moves of `champion` after the first registration, oldest first."""
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
                f"the tag {name} of {store.model_name} in {store.uri} is no entry of the log of promotions: delete "
                f"the tag in the MLflow UI"
            ) from None
    return moves


def champions_before(log: list[Move], champion: str | None) -> list[str]:
    """The versions that a rollback from `champion` goes through, the last one first to be taken.

    A move that was interrupted before its alias moved is left out: the champion after it is the one before it.
    """
    stack: list[str] = []
    after = [*(move.before for move in log), champion][1:]
    for move, then in zip(log, after, strict=True):
        if then == move.before and then != move.to:
            continue
        if move.action == "promote" and move.before:
            stack.append(move.before)
        elif move.action == "rollback" and stack:
            stack.pop()
    while stack and stack[-1] == champion:
        stack.pop()
    return stack
