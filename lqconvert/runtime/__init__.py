"""Running .tflite files in LiteRT and TFLite Micro, and verifying what they answer."""
