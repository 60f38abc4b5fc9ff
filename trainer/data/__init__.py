"""Training data: photos, pairs, inputs and drawings."""
