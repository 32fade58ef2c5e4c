"""`.npz` files of google-research/big_vision.

Positions are added before the class token, so that the class token has none. They may be fixed sines and cosines. The
blocks may be scanned: one array then contains all blocks along its first axis.
"""

import re
from typing import Any

from visionpipe.weights.google_npz import VIT, encoder_options
from visionpipe.weights.layout import Companions, Format, FormatRow, Tensors, same
from visionpipe.weights.report import Preprocessing

SCANNED = r"(.*Transformer/)encoderblock(/.*)"


def unscanned(tensors: Tensors) -> Tensors:
    """Splits `encoderblock/…` along its first axis into `encoderblock_0/…`, `encoderblock_1/…` …"""
    single = {}
    for name, array in tensors.items():
        scanned = re.fullmatch(SCANNED, name)
        if scanned:
            for block, part in enumerate(array):
                single[f"{scanned[1]}encoderblock_{block}{scanned[2]}"] = part
        else:
            single[name] = array
    return single


def options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of the checkpoint (see `Format`)."""
    return encoder_options(tensors) | {"position": "learned" if "pos_embedding" in tensors else "sincos"}


FORMAT = Format(
    name="big_vision .npz",
    signature=("embedding/kernel", "Transformer/encoder_norm/scale"),
    prefixes=("params/", "", "opt/target/"),
    rows=(*VIT, FormatRow("tokens/position_embedding", ("pos_embedding",), same)),
    options=options,
    positions="linear",
    class_position=lambda companions: False,
    preprocessing=lambda companions: Preprocessing((127.5,) * 3, (127.5,) * 3),
    unpack=unscanned,
)
