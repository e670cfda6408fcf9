"""Layers that quantize, their schemes, and the graph rewrites around them."""
