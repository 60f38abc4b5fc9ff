"""Read checkpoints of every supported format."""
