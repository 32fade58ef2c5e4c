"""`visionpipe params`, `lineage` and `check`: what would be trained, and what is registered."""

import json
from pathlib import Path

from visionpipe.backend import check_backend
from visionpipe.config import Params
from visionpipe.data.prepared import MANIFEST, PREPARED, open_prepared
from visionpipe.data.sources import existing
from visionpipe.errors import RegistryError
from visionpipe.models.names import layer_names
from visionpipe.promotion import promotions
from visionpipe.register import RECEIPT
from visionpipe.tracking.registry import aliases, all_versions
from visionpipe.tracking.runs import OTHER_WEIGHTS
from visionpipe.tracking.store import connect
from visionpipe.training.plan import plan_lines


def show_params(params: Params) -> None:
    """Says what `dvc repro` will train, or what is wrong with params.yaml in one line."""
    check_backend(params)
    if params.prepare.source != "tfds":
        existing(params.prepare, Path.exists, "a file or folder")
    images = training_images(PREPARED / MANIFEST)
    for name in params.models:
        recipe = params.train_config(name)
        print(
            f"{name}: {params.model(name).variant} on {params.backend}, {recipe.budget}, batches of "
            f"{recipe.batch_size}"
        )
        if images:
            params.plan(name, images)
        print(*plan_lines(recipe, images, layer_names(params.model_spec(name))), sep="\n")


def training_images(manifest: Path) -> int | None:
    """How many were prepared, or None where none are."""
    if not manifest.exists():
        return None
    return sum(open_prepared(manifest.parent, verify=False).manifest["counts"]["train"].values())


def lineage(version: str, params: Params) -> None:
    """Prints what made a version, given by its number or an alias."""
    store = connect(params.tracking)
    by_alias = aliases(store)
    number = by_alias.get(version, version)
    found = all_versions(store).get(number)
    if found is None:
        raise RegistryError(f"{store.model_name} has no version or alias {version!r}")
    tags = found.tags
    run = store.client.get_run(found.run_id)
    dirty = " with uncommitted changes" if tags["git_dirty"] == "true" else ""
    facts = {
        "model": f"{store.model_name} version {number} ({tags['model']})",
        "aliases": ", ".join(alias for alias, on in by_alias.items() if on == number) or "none",
        "accuracy": "validation {validation_accuracy:.6s}, test {test_accuracy:.6s}".format(**tags),
        "git commit": tags["git_commit"] + dirty,
        "run": f"{run.info.run_name} ({found.run_id})",
        "hardware": run.data.tags["hardware"],
        "versions": ", ".join(
            f"{name} {number}" for name, number in json.loads(run.data.tags["versions"]).items()
        ),
        **{name.replace("_", " "): run.data.tags[name] for name in OTHER_WEIGHTS if name in run.data.tags},
        **{
            name.replace("_", " "): tags[name]
            for name in (
                "data_sha256",
                "code_sha256",
                "train_key",
                "model_sha256",
                "artifact_sha256",
                "lineage_id",
            )
        },
    }
    for name, value in facts.items():
        print(f"{name:<16} {value}")
    print("parameters")
    for name, value in sorted(run.data.params.items()):
        print(f"  {name:<32} {value}")
    print("dvc.lock (md5)")
    for path, md5 in json.loads(tags["dvc_lock"]).items():
        print(f"  {path:<32} {md5}")
    print("moves of champion")
    for entry in promotions(store):
        print(f"  {entry['time']} {entry['action']} {entry['from']} → {entry['to']} by {entry['by']}")


def check() -> None:
    """Raises RegistryError unless the last `register` found a model that passes the gate."""
    if not RECEIPT.exists():
        raise RegistryError(f"no {RECEIPT}: run dvc repro first")
    receipt = json.loads(RECEIPT.read_text())
    if not receipt["passed"]:
        reasons = "; ".join(
            f"{name}: {', '.join(model['failures'])}" for name, model in receipt["models"].items()
        )
        raise RegistryError(f"no model passes the gate ({reasons})")
    print(f"{receipt['chosen']} passes the gate")
