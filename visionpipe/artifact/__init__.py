"""The exported model: its files and their digest, the classifier that runs it, and the MLflow model that contains it.

The modules that serving needs import neither keras nor tensorflow, jax or torch.
"""
