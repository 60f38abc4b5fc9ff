"""Build TensorRT plans for this machine's GPU into an engine file."""

from .build import BuildRequest, build, build_and_compare, prepare
from .builder import BuildOptions, PlanBuilder

__all__ = ["BuildOptions", "BuildRequest", "PlanBuilder", "build", "build_and_compare", "prepare"]
