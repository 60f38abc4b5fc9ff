"""Run the graphs by OpenVINO."""
