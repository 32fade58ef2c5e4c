"""Calls the layers of a plain Keras model directly, and several of them as one operation, where that is faster."""
