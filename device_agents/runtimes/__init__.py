"""What each runtime is given: the ONNX file, or a conversion of it."""
