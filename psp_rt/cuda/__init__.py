"""A thin layer over NVIDIA's cuda-bindings and cuda-core. Private to psp_rt."""
