"""psp_rt as its users call it, its bare sessions and requests, and OpenVINO on the engine's graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.contender import Unavailable
from benchmarks.workloads.inputs import latent, read
from psp_rt import EngineFile, InputSpec, PspError, StyleMix, Translator
from psp_rt.engine import GRAPHS
from psp_rt.hardware import openvino_core, probe_openvino
from psp_rt.images import Pixels
from psp_rt.style import Codes

if TYPE_CHECKING:
    from benchmarks.workloads.workload import Workload

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names


class PspRt:
    """psp_rt on one of its backends."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    @classmethod
    def open(cls, workload: Workload, *, device: str, backend: str, precision: str) -> PspRt:
        """Open the engine."""
        return cls(_opened(workload, device, backend, precision).clone())

    def clone(self) -> PspRt:
        """Return a contender for another thread, on the same weights."""
        return PspRt(self._translator.clone())

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        return self._translator.encode(images)

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Return codes [N, L, D] with the style of a seed from one row on."""
        return _with_style(codes, self._translator.sample(seed), first_row)

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        return self._translator.generate(codes)

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N PIL images, as for users who pass paths."""
        results: list[Any] = self._translator.run(list(pictures))
        return results

    def mix(self, image: Pixels, seeds: Sequence[int], first_row: int) -> Pixels:
        """Return RGB [K, H, W, 3]: one image [H, W, C] in K random styles, from one row of its code on."""
        results: Pixels = self._translator.run(
            image, style=StyleMix.random(seeds, layers=f"{first_row + 1}-")
        )
        return results

    def close(self) -> None:
        """Release the model."""
        self._translator.close()


class BareSessions:
    """The sessions of psp_rt, called directly. The overhead of psp_rt is the difference from this."""

    def __init__(self, translator: Translator, spec: InputSpec) -> None:
        self._translator, self._spec = translator, spec
        self._sessions: dict[str, Any] = {name: translator.bare(name) for name in GRAPHS}

    @classmethod
    def open(cls, workload: Workload) -> BareSessions:
        """Open the engine on the CPU."""
        return cls(workload.translator.clone(), workload.input)

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        codes: Codes = self._sessions["encoder"].run(None, {"image": images})[0]
        return codes

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Return codes [N, L, D] with the style of a seed from one row on."""
        style = self._sessions["mapping"].run(None, {"z": latent(seed, codes.shape[-1])})[0]
        return _with_style(codes, style, first_row)

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        feeds = {"codes": codes, "reference": codes, "weights": np.zeros(codes.shape[:2], np.float32)}
        pictures: Pixels = self._sessions["generator"].run(None, feeds)[0]
        return pictures

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N arrays [H, W, 3], RGB."""
        return list(self.generate(self.encode(read(pictures, self._spec))))

    def close(self) -> None:
        """Release the model."""
        self._sessions = {}
        self._translator.close()


class BareRequests:
    """The OpenVINO requests of psp_rt, called directly, one picture at a time as in psp_rt."""

    def __init__(self, translator: Translator, spec: InputSpec) -> None:
        self._translator, self._spec = translator, spec
        self._requests: dict[str, Any] = {name: translator.bare(name) for name in GRAPHS}

    @classmethod
    def open(cls, workload: Workload) -> BareRequests:
        """Open the engine on the CPU."""
        return cls(_opened(workload, "cpu", "openvino", "fp32").clone(), workload.input)

    def encode(self, images: Pixels) -> Codes:
        """Return codes [N, L, D]."""
        codes: Codes = np.concatenate([self._run("encoder", [image[None]]) for image in images])
        return codes

    def with_style(self, codes: Codes, seed: int, first_row: int) -> Codes:
        """Return codes [N, L, D] with the style of a seed from one row on."""
        style = self._run("mapping", [latent(seed, codes.shape[-1])])
        return _with_style(codes, style, first_row)

    def generate(self, codes: Codes) -> Pixels:
        """Return RGB [N, H, W, 3]."""
        weights = np.zeros((1, codes.shape[1]), np.float32)
        pictures = [self._run("generator", [code[None], code[None], weights]) for code in codes]
        found: Pixels = np.concatenate(pictures)
        return found

    def translate(self, pictures: Sequence[Path]) -> Sequence[Any]:
        """Return N arrays [H, W, 3], RGB."""
        return list(self.generate(self.encode(read(pictures, self._spec))))

    def close(self) -> None:
        """Release the model."""
        self._requests = {}
        self._translator.close()

    def _run(self, graph: str, inputs: list[Any]) -> Any:
        return self._requests[graph].infer(inputs, share_inputs=True)[0]


def _opened(workload: Workload, device: str, backend: str, precision: str) -> Translator:
    try:
        engine = workload.with_plans(precision) if backend == "tensorrt" else workload.engine
        return workload.opened(backend, precision, device=device, engine=engine)
    except PspError as error:
        raise Unavailable(str(error).replace(f"{workload.engine.parent}/", "")) from error


def _with_style(codes: Codes, style: Codes, first_row: int) -> Codes:
    mixed = codes.copy()
    mixed[:, first_row:] = style[0]  # all rows of a style are the same
    return mixed


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
        """Release the models."""
        self._models = {}


def extract(engine: Path, folder: Path) -> None:
    """Unzip the graphs of an engine, and their weights."""
    with EngineFile.open(engine) as file:
        for name in file.names:
            if name.startswith(GRAPHS):
                with file.view(name) as data:
                    (folder / name).write_bytes(data)
