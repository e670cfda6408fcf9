"""What every package uses: text, files, worker processes, compression, the terminal."""
