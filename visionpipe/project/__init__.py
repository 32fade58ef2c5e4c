"""A project: its params.yaml, the paths in it, and the identity of what its stages make."""
