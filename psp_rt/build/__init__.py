"""Build TensorRT plans for this machine into an engine."""
