"""`visionpipe check`: whether a model passes the gate and is registered."""

from visionpipe.errors import RegistryError
from visionpipe.project.params import Params
from visionpipe.tracking.receipt import RECEIPT, read_receipt
from visionpipe.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    find_version,
    version_by_alias,
)
from visionpipe.tracking.store import connect


def check(params: Params) -> None:
    """Raises RegistryError unless the last `register` found a model that passes, and the store still has it."""
    receipt = read_receipt()
    if receipt is None:
        raise RegistryError(f"no {RECEIPT}: run dvc repro first")
    if not receipt["passed"]:
        reasons = "; ".join(
            f"{name}: {', '.join(model['failures'])}" for name, model in receipt["models"].items()
        )
        raise RegistryError(f"no model passes the gate ({reasons})")
    chosen = receipt["chosen"]
    store = connect(params.tracking)
    if find_version(store, receipt["models"][chosen]["artifact_sha256"]) is None:
        raise RegistryError(
            f"{chosen} passes the gate, but {store.model_name} has no version of it in {store.uri}, as after its "
            f"deletion: run visionpipe register"
        )
    missing = [alias for alias in (CHAMPION, CHALLENGER) if version_by_alias(store, alias) is None]
    if missing:
        raise RegistryError(
            f"{chosen} passes the gate, but no version of {store.model_name} is {' or '.join(missing)}: run "
            f"visionpipe register"
        )
    print(f"{chosen} passes the gate")
