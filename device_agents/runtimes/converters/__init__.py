"""From an ONNX file to what a runtime loads: one module per tool, each run outside this process."""
