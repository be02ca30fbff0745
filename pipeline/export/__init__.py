"""From a chosen subnet to files that run on the target: ONNX, manifest, golden samples, checks."""
