"""A project: its params.yaml, code.lock and paths, and the identity of its models."""
