""".tflite files: reading, rewriting and packing them, without any runtime."""
