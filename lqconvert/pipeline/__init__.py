"""The whole job: from a model file and data to files and a report."""
