"""Turns image files into training batches: sources, decoding, the prepared arrays, batches, augmentation."""
