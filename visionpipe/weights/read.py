"""Reads the arrays of weight files in any supported container.

Nothing is unpickled: torch's files go through its `weights_only` reader, and NumPy's are read with
`allow_pickle=False`.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.errors import WeightsError

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
# How other files begin that users may give for weights, and what they are.
OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<", "a web page"),
    (b"{", "JSON"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every array of a file, or of the folder of a KerasHub preset, by name and as stored.

    Raises:
        WeightsError: the file does not exist, is damaged, or contains no weights.
    """
    if path.is_dir():
        return read_preset(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if head.startswith(ZIP):
            return read_zip(path)
        if head.startswith(HDF5):
            return read_hdf5(path)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
            return read_safetensors(path)
        if head[:1] == b"\x80":
            return read_torch(path)
    except WeightsError:
        raise
    except Exception as error:  # for a damaged file each library raises errors of other classes
        raise WeightsError(f"{path} is damaged: {first_line(error)}") from error
    raise WeightsError(
        f"{path} is {what_it_is(head)}; expected .npz, .safetensors, .h5, .keras, or torch's .bin or .pth"
    )


def what_it_is(head: bytes) -> str:
    """Describes a file that is no weight file, given its first 512 bytes."""
    if not head:
        return "an empty file"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    for start, description in OTHERS:
        if head.startswith(start):
            return description
    return f"an unknown kind of file, beginning {head[:8].hex(' ')}"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_keras_archive(path: Path) -> bool:
    """Whether a file is a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"config.json", "model.weights.h5"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_zip(path: Path) -> dict[str, np.ndarray]:
    """Reads a zip archive: NumPy's .npz, or torch's .pth."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return read_torch(path)
    if not names or not all(name.endswith(".npy") for name in names):
        raise WeightsError(
            f"{path} is a zip archive of {', '.join(names[:3]) or 'nothing'} …, not of weights: "
            f"unpack it first"
        )
    tensors = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            try:
                tensors[name] = file[name]
            except ValueError as error:
                if "allow_pickle" in str(error):
                    raise WeightsError(f"{path}: {name} is a pickled object, which is never loaded") from None
                raise
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a .safetensors file; bfloat16 becomes float32."""
    import safetensors

    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    tensors = {}
    with safetensors.safe_open(path, "numpy") as file:  # checks the header against the file
        for name in file.keys():  # noqa: SIM118  (not a dictionary)
            entry = header[name]
            if entry["dtype"] == "BF16":  # NumPy has no such dtype
                begin, end = entry["data_offsets"]
                halves = np.fromfile(path, "<u2", (end - begin) // 2, offset=start + begin)
                tensors[name] = bfloat16(halves).reshape(entry["shape"])
            else:
                tensors[name] = file.get_tensor(name)
    return tensors


def bfloat16(halves: np.ndarray) -> np.ndarray:
    """Converts bfloat16, given as uint16, to float32; its bits are the upper half of a float32."""
    return (halves.astype("<u4") << 16).view("<f4")


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a torch file; floating-point tensors become float32."""
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path} is a torch file, and torch is not installed: pip install 'visionpipe[torch]', "
            f"or use the .safetensors file of the same weights"
        ) from None
    import pickle  # nosec B403: only its error class is used; nothing is unpickled
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is a pickle that contains more than tensors, which is never loaded: {first_line(error)}"
        ) from None
    for key in ("state_dict", "model", "model_state"):  # training loops save the weights beside their state
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise WeightsError(f"{path} contains a {type(content).__name__}, expected a dictionary of tensors")
    return {
        str(name): (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor)
    }


def read_preset(folder: Path) -> dict[str, np.ndarray]:
    """Reads the backbone of a KerasHub preset, and its head if it has one."""
    if not (folder / "model.weights.h5").is_file():
        raise WeightsError(f"{folder} is a folder without model.weights.h5, so it is no KerasHub preset")
    return {
        name: array
        for file in ("model.weights.h5", "task.weights.h5")
        if (folder / file).is_file()
        for name, array in read_tensors(folder / file).items()
    }


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Reads a Keras .h5 file.

    The arrays of older files are named by layer and variable (`conv1_conv/kernel`), those of newer files by layer and
    number (`vit_encoder/ln/0`).
    """
    import h5py

    tensors: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            for name, layer in members(root):
                collect_older(layer, name, tensors)
        else:
            collect_newer(file, "", tensors)
    return tensors


def members(group: Any) -> Iterator[tuple[str, Any]]:
    """Yields the members of a group; raises WeightsError for links, which may lead to any file on this disk."""
    import h5py

    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if item is None or getattr(item, "external", None):
            raise WeightsError(
                f"{group.file.filename}: {name} is a link out of the file, which is never followed"
            )
        yield name, item


def collect_older(group: Any, layer: str, tensors: dict[str, np.ndarray]) -> None:
    """Adds the arrays of a layer in an older file to `tensors`."""
    for name, item in members(group):
        if hasattr(item, "shape"):
            tensors[f"{layer}/{name.partition(':')[0]}"] = item[()]
        else:
            collect_older(item, layer, tensors)


def collect_newer(group: Any, path: str, tensors: dict[str, np.ndarray]) -> None:
    """Adds the arrays below a group of a newer file to `tensors`.

    A layer's group is named by its class. The layer's name is an attribute of its group `vars`, which files of older
    versions lack. A group without `vars` only contains other groups.
    """
    for key, item in members(group):
        if key == "vars":
            for number, array in members(item):
                tensors[f"{path}{number}"] = array[()]
        elif key not in ("optimizer", "preprocessor"):
            name = item["vars"].attrs.get("name", key) if "vars" in item else None
            collect_newer(item, f"{path}{name}/" if name else path, tensors)
