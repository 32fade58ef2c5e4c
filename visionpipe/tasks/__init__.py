"""What a model is asked about an image: one module for each task."""

from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single
from visionpipe.tasks.task import Task

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Single, Multi)}


def task_for(several: bool) -> type[Task]:
    """Returns the task for images with one label, or for those with `several`."""
    return next(kind for kind in TASKS.values() if kind.several == several)
