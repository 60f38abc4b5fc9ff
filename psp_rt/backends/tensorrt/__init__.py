"""Run the graphs by TensorRT."""
