"""What is in a file, where its bytes go, and how good it is."""
