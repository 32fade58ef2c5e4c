"""Evaluates models: computes metrics, draws pictures, and compares models in a table."""
