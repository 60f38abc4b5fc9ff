"""Run the graphs with TensorRT."""
