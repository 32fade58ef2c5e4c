"""Independent forward passes in plain torch and float64. `weights`: a dictionary of path → array."""

import torch
from torch.nn import functional as F


def tensors(weights):
    return {path: torch.tensor(array, dtype=torch.float64) for path, array in weights.items()}


def normalised(images):
    return torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2) / 127.5 - 1


def kernel(w, name):
    return w[f"{name}/kernel"].permute(3, 2, 0, 1)


def dense(w, name, x):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def resnet50(weights, images, padding="symmetric"):
    """Computes torchvision's ResNet-50: explicit padding, stride on the 3×3."""
    w = tensors(weights)

    def conv(name, x, stride=1, padding=0):
        return F.conv2d(x, kernel(w, name), stride=stride, padding=padding)

    def norm(name, x):
        statistics = (w[f"{name}/{key}"] for key in ("moving_mean", "moving_variance", "gamma", "beta"))
        return F.batch_norm(x, *statistics, eps=1e-5)

    x = F.relu(norm("stem_norm", conv("stem_conv", normalised(images), 2, 3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(1, blocks + 1):
            name, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
            y = F.relu(norm(f"{name}_norm1", conv(f"{name}_conv1", x)))
            y = F.relu(norm(f"{name}_norm2", conv(f"{name}_conv2", y, stride, 1)))
            y = norm(f"{name}_norm3", conv(f"{name}_conv3", y))
            if block == 1:
                x = norm(f"{name}_shortcut_norm", conv(f"{name}_shortcut", x, stride))
            x = F.relu(x + y)
    return dense(w, "logits", x.mean((2, 3))).numpy()


def encoder(w, tokens, heads, gelu):
    """Computes pre-norm blocks and the final norm; returns the vector of the class token."""

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}/gamma"], w[f"{name}/beta"], eps=1e-6)

    block = 0
    while f"encoder_block_{block:02d}_attention_norm/gamma" in w:
        name = f"encoder_block_{block:02d}"
        y = dense(w, f"{name}_attention/query_key_value", norm(f"{name}_attention_norm", tokens))
        batch, count, width = tokens.shape
        q, k, v = y.view(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + dense(w, f"{name}_attention/output", y)
        y = dense(w, f"{name}_mlp_expand", norm(f"{name}_mlp_norm", tokens))
        tokens = tokens + dense(w, f"{name}_mlp_project", F.gelu(y, approximate=gelu))
        block += 1
    return norm("encoder_norm", tokens)[:, 0]


def embedded(w, x, patch_size):
    """Embeds images (batch, channels, height, width) as the class token and patches, with positions."""
    x = F.conv2d(x, kernel(w, "patch_embedding"), w["patch_embedding/bias"], stride=patch_size)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["tokens/class_token"].expand(len(x), -1, -1), x], dim=1)
    return x + w["tokens/position_embedding"]


def vit(weights, images):
    w = tensors(weights)
    x = encoder(w, embedded(w, normalised(images), 16), heads=6, gelu="none")
    return dense(w, "logits", x).numpy()


def r_vit(weights, images, blocks_per_stage=(2, 2, 2, 2), width_factor=1.0, hidden_dim=384):
    """Computes the hybrid of Google's vision_transformer: group norm, weight standardisation, TensorFlow's SAME."""
    w = tensors(weights)

    def same(x, size, stride, value=0.0):
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads, value=value)

    def conv(name, x, stride=1):
        k = kernel(w, name)
        deviation, mean = torch.std_mean(k, dim=(1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(same(x, k.shape[-1], stride), (k - mean) / (deviation + 1e-5), stride=stride)

    def norm(name, x):
        return F.group_norm(x, 32, w[f"{name}/gamma"], w[f"{name}/beta"], eps=1e-6)

    x = F.relu(norm("stem_norm", conv("stem_conv", normalised(images), 2)))
    x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for stage, blocks in enumerate(blocks_per_stage, start=1):
        for block in range(1, blocks + 1):
            name, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
            y = F.relu(norm(f"{name}_norm1", conv(f"{name}_conv1", x)))
            y = F.relu(norm(f"{name}_norm2", conv(f"{name}_conv2", y, stride)))
            y = norm(f"{name}_norm3", conv(f"{name}_conv3", y))
            if block == 1:
                x = norm(f"{name}_shortcut_norm", conv(f"{name}_shortcut", x, stride))
            x = F.relu(x + y)
    heads = 6 if hidden_dim == 384 else 12
    return dense(w, "logits", encoder(w, embedded(w, x, 1), heads, "tanh")).numpy()
