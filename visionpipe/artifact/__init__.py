"""What ships: the exported model, its identity, the classifier that runs it, and the MLflow model around it.

Nothing in here that serving needs imports keras, tensorflow, jax or torch.
"""
