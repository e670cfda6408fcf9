"""Studies with many runs."""
