"""Quantizing layers, schemes, and the rewriting of a model's graph."""
