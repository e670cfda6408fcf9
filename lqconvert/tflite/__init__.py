"""Reads, rewrites and packs .tflite files, without any runtime."""
