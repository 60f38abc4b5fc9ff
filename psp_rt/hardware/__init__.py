"""This machine: devices, runtimes, and what an engine uses of them."""
