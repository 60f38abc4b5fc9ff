"""Benchmarks: latency, training speed and the encoders, with the tables made from their results."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
