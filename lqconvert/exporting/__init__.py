"""Integer weights with their scales, and the int8 .tflite that holds exactly these."""
