"""From image files to prepared arrays: sources, decoding, the prepared form, batches, augmentation."""
