"""Build and trace the ONNX graphs of an engine."""
