"""What a file contains, where its bytes go, and how accurate it is."""
