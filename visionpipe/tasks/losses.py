"""The losses of single images, computed with the operations of any backend.

Logits are (batch, classes), and every function returns (batch,). Each loss is linear in its targets, so that an image
that was mixed of two has the mixed loss.

- Of one label: `labels` (batch, classes), which sum to one.
- Of several labels: `positives` and `negatives` (batch, classes), the shares in which a label is present, and known to
  be absent, perhaps times a weight. `known` is the sum of the shares without weights, and 0 where nothing is known. An
  image's loss is the mean over its known labels.
"""

from typing import Any

SMALLEST = 1e-7  # of 1 − p: a power of 0 has no gradient below an exponent of 1


def softmax(labels: Any, logits: Any) -> Any:
    """Computes the cross-entropy over the classes."""
    from keras import ops

    return ops.categorical_crossentropy(labels, logits, from_logits=True)


def sigmoid(labels: Any, logits: Any) -> Any:
    """Computes the mean over the classes of the cross-entropy of each against all others (Beyer et al. 2020)."""
    from keras import ops

    return ops.mean(ops.binary_crossentropy(labels, logits, from_logits=True), axis=-1)


def focal(labels: Any, logits: Any, gamma: float) -> Any:
    """Computes the focal loss over a softmax: the sum of −label · (1−p)^gamma · log p over the classes.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    from keras import ops

    logarithms = ops.log_softmax(logits)
    others = ops.maximum(-ops.expm1(logarithms), SMALLEST)
    return -ops.sum(labels * others**gamma * logarithms, axis=-1)


def binary(positives: Any, negatives: Any, known: Any, logits: Any, gamma: float = 0.0) -> Any:
    """Computes the binary cross-entropy, with `gamma` the focal loss (Lin et al. 2017, arXiv:1708.02002)."""
    from keras import ops

    present, absent = ops.softplus(-logits), ops.softplus(logits)  # −log σ(x) and −log (1 − σ(x))
    if gamma:
        shares = ops.sigmoid(logits)
        present = present * ops.maximum(1 - shares, SMALLEST) ** gamma
        absent = absent * ops.maximum(shares, SMALLEST) ** gamma
    return mean_of_known(positives * present + negatives * absent, known)


def asymmetric(
    positives: Any,
    negatives: Any,
    known: Any,
    logits: Any,
    gamma_present: float,
    gamma_absent: float,
    margin: float,
) -> Any:
    """Computes the asymmetric loss, in which easy absent labels hardly count.

    An absent label has the probability max(p − margin, 0) instead of p. Source: Ridnik et al. 2021,
    arXiv:2009.14119.
    """
    from keras import ops

    shares = ops.sigmoid(logits)
    shifted = ops.maximum(shares - margin, 0.0)
    present = ops.softplus(-logits) * ops.maximum(1 - shares, SMALLEST) ** gamma_present
    absent = -ops.log(ops.maximum(1 - shifted, SMALLEST)) * ops.maximum(shifted, SMALLEST) ** gamma_absent
    return mean_of_known(positives * present + negatives * absent, known)


def mean_of_known(losses: Any, known: Any) -> Any:
    """Returns the mean of losses (batch, classes) over the labels that are known; 0 for an image without any."""
    from keras import ops

    return ops.sum(losses, axis=-1) / ops.maximum(ops.sum(known, axis=-1), SMALLEST)


def smoothed(positives: Any, negatives: Any, smoothing: float) -> tuple[Any, Any]:
    """Moves half of `smoothing` of each known label to the other side."""
    known = positives + negatives
    return tuple((1 - smoothing) * side + smoothing / 2 * known for side in (positives, negatives))


def divergence(student: Any, teacher: Any, temperature: float) -> Any:
    """Computes T² · KL(teacher ‖ student) of softmaxes at temperature T, which then does not scale the gradient."""
    from keras import ops

    expected, answered = ops.log_softmax(teacher / temperature), ops.log_softmax(student / temperature)
    return temperature**2 * ops.sum(ops.exp(expected) * (expected - answered), axis=-1)


def binary_divergence(student: Any, teacher: Any, temperature: float) -> Any:
    """Computes T² · the mean over the classes of KL(teacher ‖ student) of sigmoids at temperature T."""
    from keras import ops

    logits, answered = teacher / temperature, student / temperature
    shares = ops.sigmoid(logits)
    present = shares * (ops.softplus(-answered) - ops.softplus(-logits))
    absent = (1 - shares) * (ops.softplus(answered) - ops.softplus(logits))
    return temperature**2 * ops.mean(present + absent, axis=-1)
