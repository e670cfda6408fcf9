"""Used by every package: text, files, worker processes, compression, the terminal."""
