"""Run the two networks that ship with psp_rt, on ONNX Runtime or OpenVINO, from any thread and process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError
from ..hardware.openvino import openvino_core, probe_openvino
from ..hardware.probe import INSTALL_CPU
from ..native import calling, check_not_ending, owns

Floats = npt.NDArray[np.float32]
Call = Callable[[Floats], dict[str, Floats]]


class Network:
    """A network that is open in each process that uses it, also one that was forked off.

    Raises:
        DeviceError: Neither ONNX Runtime nor OpenVINO is installed.
    """

    def __init__(self, name: str, side: int, threads: int, backend: str | None) -> None:
        self._name, self._side, self._threads, self._backend = name, side, threads, backend
        self._opened = _Opened(self._open())

    def __call__(self, image: Floats) -> dict[str, Floats]:
        """Return the outputs for an image [1, side, side, 3]."""
        opened = self._opened
        if opened.process != os.getpid():  # its threads are in the other process
            opened = self._opened = _Opened(self._open())
        with calling():
            check_not_ending()
            return opened.call()(image)

    def _open(self) -> Callable[[], Call]:
        data = resources.files(__package__).joinpath("weights", self._name).read_bytes()
        with calling():
            check_not_ending()
            problem = probe_openvino().problem
            if self._backend in (None, "openvino") and not problem:
                return _open_on_openvino(data, self._side, self._threads)
            if self._backend == "openvino":
                raise DeviceError(f"the face finder cannot use OpenVINO: {problem}")
            try:
                return _open_on_onnxruntime(data, self._threads)
            except ImportError:
                raise DeviceError(
                    f"finding faces needs ONNX Runtime or OpenVINO; "
                    f"install one with: {INSTALL_CPU} ({problem})"
                ) from None


class _Opened:
    """A network in one process."""

    def __init__(self, new_call: Callable[[], Call]) -> None:
        self.process = os.getpid()
        self._new_call, self._local = new_call, threading.local()
        owns(self)

    def call(self) -> Call:
        """Return what this thread calls."""
        if not hasattr(self._local, "call"):
            self._local.call = self._new_call()
        call: Call = self._local.call
        return call

    def close(self) -> None:
        """Do nothing: a network lives as long as its process."""


def _open_on_onnxruntime(data: bytes, threads: int) -> Callable[[], Call]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Floats) -> dict[str, Floats]:
        return dict(zip(names, session.run(names, {"image": image}), strict=True))

    return lambda: run


def _open_on_openvino(data: bytes, side: int, threads: int) -> Callable[[], Call]:
    core: Any = openvino_core()
    model = core.read_model(data, b"")
    model.reshape({"image": [1, side, side, 3]})  # OpenVINO is slower with an open batch
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    names = [output.get_any_name() for output in compiled.outputs]

    def new_call() -> Call:
        request = compiled.create_infer_request()  # which serves one thread at a time

        def run(image: Floats) -> dict[str, Floats]:
            found = request.infer({"image": image})
            return {name: np.array(found[name]) for name in names}

        return run

    return new_call
