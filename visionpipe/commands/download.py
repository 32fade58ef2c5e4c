"""`visionpipe download`: fetches a data set of the Hugging Face Hub into a folder, for `source: huggingface`."""

from pathlib import Path

from visionpipe.data.huggingface import NEEDED
from visionpipe.errors import ConfigError, DataError
from visionpipe.escape import visible
from visionpipe.files import making_folder


def download(name: str, path: Path) -> None:
    """Downloads the data set `name` and saves it to the folder `path`.

    Args:
        name: such as `cifar10`, or `SET:CONFIGURATION` for a set with several configurations.
        path: a folder that does not exist yet.

    Raises:
        ConfigError: the folder exists, or the library datasets is not installed.
        DataError: there is no such set, or the Hub cannot be reached.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(NEEDED) from None
    if path.exists():
        raise ConfigError(f"{visible(str(path))} exists: name a new folder")
    of_hub, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(of_hub, configuration or None)  # nosec B615: the images are hashed
    except Exception as error:  # the network, the Hub and the set's files raise errors of any class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{visible(name)} cannot be downloaded: {reason}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with making_folder(path) as folder:
        loaded.save_to_disk(str(folder))
    print(
        f"{visible(name)} is in {visible(str(path))}: set prepare.source: huggingface and prepare.path to it"
    )
