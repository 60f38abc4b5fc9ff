"""A thin layer over NVIDIA's cuda-bindings and cuda-core: the GPU's context, captured graphs, other
libraries' arrays."""
