"""Tables that tell which model a checkpoint needs, from tensors without a weight and weights without a tensor."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Pattern of a tensor for which the model has no weight, the override that adds the weight, and a function from the
# tensor to the value of the override.
THEIRS: tuple[tuple[str, str, Callable[[np.ndarray], Any]], ...] = (
    (r"dist_token|distillation_token|head_dist|(cls|distillation)_classifier|logits_(class|distillation)/",
     "distillation_token", lambda x: True),
    (r"pre_logits|pooler", "representation_dim", lambda x: x.shape[0] if x.ndim == 1 else None),
    (r"reg_token|register_tokens", "register_tokens", lambda x: x.shape[1]),
    (r"(^|\.)ls[12]\.|(attention|mlp)_scale/scale", "layer_scale", lambda x: 1e-5),
    (r"^cls$|cls_token|class_token|vit_patching_and_embedding/0$", "pool", lambda x: "token"),
    (r"(qkv|query|key|value)[./](bias|1)$|query_key_value/bias$", "query_key_value_bias", lambda x: True),
    (r"pos_?embed|position_embedding", "position", lambda x: None),
)  # fmt: skip
# Pattern of a weight that the checkpoint lacks, and the override, with its value, that removes the weight.
OURS: tuple[tuple[str, str, Any], ...] = (
    (r"tokens/distillation_token", "distillation_token", False),
    (r"pre_logits/.*", "representation_dim", None),
    (r"tokens/register_tokens", "register_tokens", 0),
    (r".*_(attention|mlp)_scale/scale", "layer_scale", None),
    (r"tokens/class_token|pool/score/.*", "pool", "gap"),
    (r".*query_key_value/bias", "query_key_value_bias", False),
)
POSITION = (r"tokens/position_embedding", "position", None)
# Pattern of a tensor that no model of this package can use, and the reason.
NOTES = (
    (r"fc_norm", "it has a norm behind the pooling, which no model here has"),
    (r"MAPHead|attn_pool", "it pools with attention, which no model here does"),
    (r"norm_pre", "it has a norm before the first block, which no model here has"),
    (r"[qk]_norm", "it normalises queries and keys, which no model here does"),
)
