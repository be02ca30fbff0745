"""One ONNX file, measured whole: numbers, phases, operators, outputs, limits."""
