"""Losses of the trainer, one a file."""
