"""A complete run: from a model file and data to files and a report."""
