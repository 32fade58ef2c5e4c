"""`visionpipe lineage`: prints the data, code, parameters and run that made a registered version."""

import json
from typing import Any

from visionpipe.commands.promote import promotions
from visionpipe.errors import RegistryError
from visionpipe.project.params import Params
from visionpipe.tracking.registry import (
    aliases,
    all_versions,
    locked_files,
    task_of,
)
from visionpipe.tracking.runs import OTHER_WEIGHTS
from visionpipe.tracking.store import DeletedVersion, Store, StoreError, connect
from visionpipe.tracking.verification import made_of, named

DIGESTS = ("data_sha256", "code_sha256", "train_key", "model_sha256", "artifact_sha256", "lineage_id")


def lineage(version: str, params: Params) -> None:
    """Prints what made the version with this number or alias.

    Raises:
        RegistryError: there is no such version.
    """
    store = connect(params.tracking)
    by_alias = aliases(store)
    number = by_alias.get(version, version)
    registered = all_versions(store).get(number)
    if registered is None and version in by_alias:
        raise DeletedVersion(store.model_name, version, number)
    if registered is None:
        known = ", ".join(sorted({*by_alias, *all_versions(store)}))
        advice = f"choose one of {known}" if known else "run visionpipe register"
        raise RegistryError(
            f"{store.model_name} has no version or alias {version!r} in {store.uri}: {advice}"
        )
    tags, run = registered.tags, run_of(store, registered)
    score = task_of(registered).score
    facts = {
        "model": f"{store.model_name} version {number} ({made_of(registered)})",
        "aliases": ", ".join(alias for alias, on in by_alias.items() if on == number) or "none",
        score.replace("_", " "): ", ".join(
            f"{split} {tags[f'{split}_{score}']:.6s}"
            for split in ("validation", "test")
            if f"{split}_{score}" in tags
        ),
        "git commit": commit_text(tags),
    }
    if "artifact_sha256" not in tags:
        print(
            f"{named(store, registered)} was not made by visionpipe register, so its origin is not recorded"
        )
    if run is None:
        facts["run"] = (
            f"{registered.run_id or 'none'}: deleted with its parameters; the version's files are not affected"
        )
    else:
        versions = json.loads(run.data.tags.get("versions", "{}"))
        facts |= {
            "run": f"{run.info.run_name} ({registered.run_id})",
            "hardware": run.data.tags.get("hardware", ""),
            "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        } | {name.replace("_", " "): run.data.tags[name] for name in OTHER_WEIGHTS if name in run.data.tags}
    facts |= {name.replace("_", " "): tags.get(name, "") for name in DIGESTS}
    width = max(map(len, facts))
    for name, value in facts.items():
        if value:
            print(f"{name:<{width}} {value}")
    print("parameters")
    for name, value in sorted(run.data.params.items()) if run else ():
        print(f"  {name:<32} {value}")
    print("dvc.lock (md5)")
    for path, md5 in locked_files(registered).items():
        print(f"  {path:<32} {md5}")
    print("moves of champion")
    for move in promotions(store):
        print(f"  {move.time} {move.action} {move.before} → {move.to} by {move.by}")


def run_of(store: Store, version: Any) -> Any | None:
    """Returns the run that made a version; None if there was none, or if it was deleted permanently."""
    if not version.run_id:
        return None
    try:
        return store.client.get_run(version.run_id)
    except StoreError as error:
        if error.code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def commit_text(tags: dict[str, str]) -> str:
    """Returns the commit that makes the model, or why there is no such commit."""
    commit = tags.get("git_commit", "")
    if tags.get("git_note"):
        return f"{commit}: {tags['git_note']}"
    return f"{commit} with uncommitted changes" if tags.get("git_dirty") == "true" else commit
