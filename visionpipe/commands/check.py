"""`visionpipe check`: fails unless a model passes the gate and is registered."""

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
    """Checks that a model passed the gate at the last `register`, and that the store has its version and both aliases.

    Raises:
        RegistryError: one of these does not hold.
    """
    receipt = read_receipt()
    if receipt is None:
        raise RegistryError(f"there is no {RECEIPT}: run dvc repro first")
    if not receipt["passed"]:
        reasons = "; ".join(
            f"{name}: {', '.join(model['failures'])}" for name, model in receipt["models"].items()
        )
        raise RegistryError(f"no model passes the gate ({reasons}): improve a model, or lower register.gate")
    chosen = receipt["chosen"]
    store = connect(params.tracking)
    if find_version(store, receipt["models"][chosen]["artifact_sha256"]) is None:
        raise RegistryError(
            f"{chosen} passes the gate, but {store.uri} has no version of {store.model_name} made from it: run "
            f"visionpipe register"
        )
    missing = [alias for alias in (CHAMPION, CHALLENGER) if version_by_alias(store, alias) is None]
    if missing:
        raise RegistryError(
            f"{chosen} passes the gate, but {store.model_name} has no {' and no '.join(missing)}: run visionpipe "
            f"register"
        )
    print(f"{chosen} passes the gate")
