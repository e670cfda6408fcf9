"""Runs .tflite files in LiteRT and TFLite Micro, and verifies their outputs."""
