"""Counts a model's parameters and multiply-accumulates on its graph.

    python -m visionpipe.models.costs

writes the numbers of all variants into costs.csv beside this file, which `visionpipe models` reads.
"""

import csv
import math
from typing import TYPE_CHECKING

from visionpipe.models import COSTS, build_model, list_models
from visionpipe.models.variants import VARIANTS

if TYPE_CHECKING:
    import keras


def parameters(model: "keras.Model") -> int:
    """Counts the trainable parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def multiply_accumulates(model: "keras.Model") -> int:
    """Counts the multiply-accumulates for one image in convolutions, dense layers and attention; the rest is small."""
    from keras import layers

    from visionpipe.models.attention import MultiHeadSelfAttention

    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
            positions = math.prod(layer.output.shape[1:-1])
            total += positions * math.prod(layer.kernel.shape)
        elif isinstance(layer, MultiHeadSelfAttention):
            tokens, hidden_dim = math.prod(layer.output.shape[1:-1]), layer.output.shape[-1]
            kernels = sum(math.prod(weight.shape) for weight in layer.weights if weight.name == "kernel")
            total += tokens * kernels + 2 * tokens**2 * hidden_dim
    return total


def build_all() -> list[dict[str, object]]:
    """Returns one row per variant, at its image size and number of classes, without allocating weights."""
    import keras

    rows: list[dict[str, object]] = []
    for name, variant in VARIANTS.items():
        with keras.StatelessScope(initialize_variables=False):
            model = build_model(name, variant.num_classes, variant.image_size)
        gmac = f"{multiply_accumulates(model) / 1e9:.3g}"
        rows.append({"name": name, "parameters": parameters(model), "gmac": gmac})
    return rows


def table() -> str:
    """Returns the list of models as a Markdown table."""
    lines = [
        "| name | family | parameters | GMAC | image size | reference |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {m.name} | {m.family} | {m.parameters:,} | {m.gmac:g} | {m.image_size} | {m.reference} |"
        for m in list_models()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with COSTS.open("w") as file:
        writer = csv.DictWriter(file, ["name", "parameters", "gmac"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(build_all())
