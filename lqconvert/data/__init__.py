"""What ``--data`` names, as splits; how inputs are preprocessed."""
