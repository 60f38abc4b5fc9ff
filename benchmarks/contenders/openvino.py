"""OpenVINO on the graphs of the engine, as any tool reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.unavailable import Unavailable
from benchmarks.measure.workload import Workload, latent, read
from psp_rt import EngineFile, InputSpec
from psp_rt.backends.openvino.backend import PRECISIONS
from psp_rt.engine.ports import GRAPHS
from psp_rt.hardware.openvino import openvino_core, probe_openvino
from psp_rt.images import Pixels
from psp_rt.style import Codes


class OpenVino:
    """OpenVINO on the CPU, all graphs in one precision."""

    def __init__(self, models: dict[str, Any], spec: InputSpec) -> None:
        self._models, self._spec = models, spec

    @classmethod
    def open(cls, workload: Workload, precision: str = "fp32") -> OpenVino:
        """Compile the graphs."""
        found = probe_openvino()
        if found.problem:
            raise Unavailable(found.problem)
        if precision == "bf16" and "BF16" not in found.capabilities:
            raise Unavailable("this processor has no BF16 arithmetic")
        core = openvino_core()
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": workload.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            extract(workload.engine, folder)
            models = {
                graph: core.compile_model(folder / f"{graph}.onnx", "CPU", settings) for graph in GRAPHS
            }
        return cls(models, workload.input)

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        codes: Codes = self._models["encoder"]([images])[0]
        return codes

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Return codes [N, L, D] with the style of a seed from one row on."""
        mixed = codes.copy()
        mixed[:, first_row:] = self._models["mapping"]([latent(seed, codes.shape[-1])])[0]
        return mixed

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        weights = np.zeros(codes.shape[:2], np.float32)
        feeds = {"codes": codes, "reference": codes, "weights": weights}
        pictures: Pixels = self._models["generator"](feeds)[0]
        return pictures

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N arrays [H, W, 3], RGB."""
        return list(self.generate(self.encode(read(pictures, self._spec))))

    def close(self) -> None:
        """Let go of the models."""
        self._models = {}


def extract(engine: Path, folder: Path) -> None:
    """Unzip the graphs of an engine, and their weights."""
    with EngineFile.open(engine) as file:
        for name in file.names:
            if name.startswith(GRAPHS):
                with file.view(name) as data:
                    (folder / name).write_bytes(data)
