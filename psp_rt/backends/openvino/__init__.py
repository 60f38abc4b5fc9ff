"""Run the graphs with OpenVINO."""
