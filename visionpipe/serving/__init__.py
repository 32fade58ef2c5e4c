"""Answering with an exported model. Nothing in here imports keras, tensorflow, jax or torch."""
