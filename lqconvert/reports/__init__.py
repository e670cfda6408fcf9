"""The report of a run, and its HTML page."""
