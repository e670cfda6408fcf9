"""Finds the data that ``--data`` names, splits them, and preprocesses inputs."""
