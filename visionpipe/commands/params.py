"""`visionpipe params`: checks params.yaml and prints the trainings that `dvc repro` would run."""

from pathlib import Path

from visionpipe.data.prepared import MANIFEST, PREPARED, open_prepared, split_sizes
from visionpipe.data.sources import existing
from visionpipe.errors import DataError
from visionpipe.models.names import layer_names
from visionpipe.project.backend import check_backend
from visionpipe.project.hashing import unhashable
from visionpipe.project.params import Params, plan_of
from visionpipe.training.plan import plan_lines


def show_params(params: Params) -> None:
    """Prints the plan of each training.

    Raises:
        ConfigError: a recipe does not fit the number of training images.
        BackendError: the backend is not installed.
        DataError: the images are missing, or DVC cannot read them all.
    """
    check_backend(params)
    if params.prepare.source != "tfds":
        existing(params.prepare, Path.exists, "a file or folder")
    if params.prepare.source != "tfds" and (problem := unhashable(Path(params.prepare.path))):
        raise DataError(problem)
    images = training_images(PREPARED / MANIFEST)
    for name in params.models:
        recipe = params.train_config(name)
        print(
            f"{name}: {params.model(name).variant} on {params.backend}, {recipe.budget}, batches of "
            f"{recipe.batch_size}"
        )
        if images:
            plan_of(recipe, name, images)
        print(*plan_lines(recipe, images, layer_names(params.model_spec(name))), sep="\n")


def training_images(manifest: Path) -> int | None:
    """Returns the number of prepared training images; None before the stage prepare has run."""
    if not manifest.exists():
        return None
    return split_sizes(open_prepared(manifest.parent, verify=False).manifest)["train"]
