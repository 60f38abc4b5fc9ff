"""Build with TensorRT for RTX, which needs no GPU: our check that graphs parse and build."""

from __future__ import annotations

from typing import Any

from psp_rt.build import BuildOptions
from psp_rt.build.builder import PlanBuilder

CAPABILITY = "SM89"


class RtxBuilder(PlanBuilder):
    """The builder of plans, for a stated compute capability instead of the GPU that is here."""

    def __init__(self, trt: Any, options: BuildOptions | None = None) -> None:
        super().__init__(trt, options or BuildOptions())
        self._rtx = trt

    def config(self, network: Any) -> Any:
        """Return the configuration for a network."""
        config = super().config(network)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self._rtx.ComputeCapability, CAPABILITY), 0)
        return config
