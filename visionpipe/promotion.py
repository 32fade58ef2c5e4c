"""`visionpipe promote` and `visionpipe rollback`: which version serves, and the log of how that changed.

The log lives with the registered model, as one tag per move, so that everybody who uses the registry
sees the same one.
"""

import getpass
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from visionpipe.config import Params
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import RegistryError
from visionpipe.serving.classifier import Classifier
from visionpipe.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    aliases,
    all_versions,
    download_classifier,
    registered_model,
    version_by_alias,
)
from visionpipe.tracking.store import Store, connect

LOG_TAG = "promotion."


def promote(params: Params, new_data: bool = False) -> None:
    """Makes the challenger the champion if it is better on the present test images.

    `new_data`: also where the champion cannot answer them, as it knows other classes or another image size.
    """
    store = connect(params.tracking)
    challenger, champion = version_by_alias(store, CHALLENGER), version_by_alias(store, CHAMPION)
    if challenger is None:
        raise RegistryError(f"{store.model_name} has no challenger: run dvc repro")
    if champion is not None and champion.version == challenger.version:
        print(f"version {champion.version} is champion and challenger already: nothing to promote")
        return
    scores = {}
    for alias, version in ((CHALLENGER, challenger), (CHAMPION, champion)):
        if version is None:
            continue
        named = f"{alias:<10} version {version.version} ({version.tags['model']})"
        score = test_accuracy(store, version)
        if score is not None:
            scores[str(version.version)] = score
            print(f"{named}: test accuracy {score:.4f}")
        elif alias == CHALLENGER or not new_data:
            raise RegistryError(
                f"version {version.version} has other classes or another image size than {PREPARED}: the two "
                f"versions cannot be compared on it"
                + ("; visionpipe promote --new-data promotes without" if alias == CHAMPION else "")
            )
        else:
            print(f"{named}: other classes or another image size, not compared")
    new, old = str(challenger.version), str(champion.version) if champion else None
    if old in scores and scores[new] <= scores[old]:
        raise RegistryError(
            f"version {new} is not better than version {old} on the same test images: nothing was promoted"
        )
    move_champion(store, new, old, "promote", scores)


def rollback(params: Params) -> None:
    """Gives `champion` back to the version that had it before the last promotion."""
    store = connect(params.tracking)
    champion, history = aliases(store).get(CHAMPION), champions_before(promotions(store))
    if champion is None or not history:
        raise RegistryError(f"{store.model_name} has no earlier champion to go back to")
    if history[-1] not in all_versions(store):
        raise RegistryError(
            f"version {history[-1]} of {store.model_name}, champion before version {champion}, was deleted: "
            f"give the alias {CHAMPION} to another version in the MLflow UI"
        )
    move_champion(store, history[-1], champion, "rollback", {})


def test_accuracy(store: Store, version: Any) -> float | None:
    """Accuracy of a registered version on the test split that lies prepared here, in [0, 1]; None where it
    knows other classes or takes images of another size or framing.
    """
    data = open_prepared(PREPARED)
    with tempfile.TemporaryDirectory() as folder:
        classifier = Classifier(download_classifier(store, version, Path(folder)))
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
        "by": getpass.getuser(),
        "test_accuracy": scores,
    }
    number = len(promotions(store)) + 1
    store.client.set_registered_model_tag(store.model_name, f"{LOG_TAG}{number:04d}", json.dumps(entry))
    store.client.set_registered_model_alias(store.model_name, CHAMPION, to)
    print(f"champion: version {before or 'none'} → version {to}")


def promotions(store: Store) -> list[dict[str, Any]]:
    """All moves of `champion` after the first registration, oldest first."""
    model = registered_model(store)
    tags = sorted(model.tags.items()) if model else []
    return [json.loads(value) for name, value in tags if name.startswith(LOG_TAG)]


def champions_before(log: list[dict[str, Any]]) -> list[str]:
    """The versions that a rollback goes through, the last one first to be taken.

    The same move twice in a row is one that was interrupted before the alias moved, and repeated.
    """
    stack: list[str] = []
    for entry in log:
        if entry["action"] == "promote" and entry["from"] and stack[-1:] != [entry["from"]]:
            stack.append(entry["from"])
        elif entry["action"] == "rollback" and stack:
            stack.pop()
    return stack
