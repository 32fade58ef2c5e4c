"""`.npz` files of google-research/big_vision: positions are added before the class token, so that it has
none; they may be fixed sines; the blocks may be scanned, all of them in one array with a leading axis.
"""

import re
from typing import Any

from visionpipe.weights.google_npz import VIT, encoder_options
from visionpipe.weights.layout import Companions, Format, Row, Tensors, same
from visionpipe.weights.report import Preprocessing

SCANNED = r"(.*Transformer/)encoderblock(/.*)"


def unscanned(tensors: Tensors) -> Tensors:
    """`encoderblock/…` with its leading axis of blocks as `encoderblock_0/…`, `encoderblock_1/…` …"""
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
    return encoder_options(tensors) | {"position": "learned" if "pos_embedding" in tensors else "sincos"}


FORMAT = Format(
    name="big_vision .npz",
    signature=("embedding/kernel", "Transformer/encoder_norm/scale"),
    prefixes=("params/", "", "opt/target/"),
    rows=(*VIT, Row("tokens/position_embedding", ("pos_embedding",), same)),
    options=options,
    positions="linear",
    class_position=lambda companions: False,
    preprocessing=lambda companions: Preprocessing((127.5,) * 3, (127.5,) * 3),
    unpack=unscanned,
)
