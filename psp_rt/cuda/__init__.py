"""CUDA devices, streams and the arrays of other libraries."""
