"""What a model is asked about an image: one module for each task."""

from visionpipe.tasks.single import Single
from visionpipe.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Single(),)}
