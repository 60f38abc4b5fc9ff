"""Inspect an engine's layers, precisions and times."""
