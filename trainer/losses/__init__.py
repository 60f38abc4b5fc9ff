"""Losses of the trainer, one per file."""
