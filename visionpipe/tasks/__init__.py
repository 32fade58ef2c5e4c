"""What a model is asked about an image: one module for each task."""

from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single
from visionpipe.tasks.task import Task

POSSIBLE = (
    "a model names one class of each image (task: single) or any number of labels (task: multi); predict a number by "
    "cutting it into classes, such as low, middle and high, and ordered classes, such as grades, with task: single"
)
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Single, Multi)}


def task_for(several: bool) -> type[Task]:
    """Returns the task for images with one label, or for those with `several`."""
    return next(kind for kind in TASKS.values() if kind.several == several)
