"""The engine file: its format, reading it safely and writing it."""
