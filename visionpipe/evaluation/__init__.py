"""How good a model is, and how fast: numbers, pictures, speed, and the comparison of models."""
