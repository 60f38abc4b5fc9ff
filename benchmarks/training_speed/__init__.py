"""Training speed against plain loops."""
