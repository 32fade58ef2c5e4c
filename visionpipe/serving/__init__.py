"""Serves an exported model over HTTP. Nothing in this package imports keras, tensorflow, jax or torch."""
