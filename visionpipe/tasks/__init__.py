"""What a model is asked about an image: one module for each task."""

from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single
from visionpipe.tasks.task import Task

POSSIBLE = (
    "a model names one class of each image (task: single) or any number of labels (task: multi); predict a number by "
    "cutting it into classes, such as low, middle and high, and ordered classes, such as grades, with task: single"
)
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Single, Multi)}
