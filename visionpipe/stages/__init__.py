"""The five stages of dvc.yaml. Each is a module with one function, and both have the stage's name."""
