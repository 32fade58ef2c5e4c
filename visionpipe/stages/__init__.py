"""The five stages of dvc.yaml, one module and one function each, of the stage's name."""
