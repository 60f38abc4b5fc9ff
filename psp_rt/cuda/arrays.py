"""Pictures in GPU memory: arrays of other libraries in, arrays of the same library out.

cuda-core reads DLPack and ``__cuda_array_interface__`` and makes our stream wait for the array's own stream.
What an array claims is checked before a kernel uses it, since a wrong address would end all work on the GPU.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..engine.manifest import Manifest
from ..errors import BackendError, DeviceError, InputError
from .device import INSTALL_BINDINGS, CudaDevice, Resources

LEGACY_DEFAULT = 1  # CU_STREAM_LEGACY, cuda.h: the default stream
SHARE_CONTEXT = (
    "psp_rt works in the primary context of the translator's GPU: with pycuda, import pycuda.autoprimaryctx "
    "instead of pycuda.autoinit"
)


class DeviceArray:
    """A uint8 array in GPU memory that is known by its address, for example from a C++ host.

    `Translator.run` takes it as ``images`` and as ``out``; other libraries read its
    ``__cuda_array_interface__``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, pointer: int, shape: tuple[int, ...], *, owner: Any, stream: int) -> None:
        """Use `from_pointer`, which checks the values."""
        self.pointer, self.shape, self._owner, self._stream = pointer, shape, owner, stream

    @classmethod
    def from_pointer(
        cls, address: int, shape: tuple[int, ...], *, owner: Any = None, stream: Any = LEGACY_DEFAULT
    ) -> DeviceArray:
        """Return an array over memory that belongs to someone else.

        Args:
            address: GPU address of contiguous bytes.
            shape: The shape, for example (256, 256, 3).
            owner: An object to keep alive as long as the array; None if the caller keeps the memory.
            stream: The stream that writes the content: a handle, or a stream object as in `Translator.run`.

        Raises:
            InputError: A value is invalid.
        """
        if isinstance(address, bool) or not isinstance(address, int) or address < 1:
            raise InputError(f"the address is {address!r}; expected an int, such as tensor.data_ptr() gives")
        sizes = tuple(shape)
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InputError(f"the shape is {shape!r}; expected positive sizes, such as (256, 256, 3)")
        return cls(address, sizes, owner=owner, stream=stream_handle(stream))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.pointer, False),
            "stream": self._stream,
            "version": 3,
        }

    def __repr__(self) -> str:
        return f"<DeviceArray uint8 {list(self.shape)} at {self.pointer:#x}>"


@dataclass(frozen=True, kw_only=True)
class GpuPictures:
    """The pictures of one call and the memory for their results, in order for one stream."""

    source: int  # address of the images
    count: int
    target: int  # address of the results
    result: Any  # what the caller gets
    views: tuple[Any, ...]  # keep the memory until the GPU has finished


class GpuArrays:
    """Takes arrays on one GPU, whose context is current. Checked addresses and streams are remembered."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._checked_streams: set[int] = set()
        self._checked_addresses: set[int] = set()

    def stream(self, given: Any) -> int:
        """Return the handle of the caller's stream.

        Raises:
            InputError: It is not a stream of this context, or a graph is being captured in it.
        """
        stream = stream_handle(given)
        self._check_stream(stream, "stream")
        if int(self._device.call("cuStreamIsCapturing", stream)) != 0:
            raise InputError(
                "stream is being captured; run() launches a graph of its own, so call it outside of the "
                "capture"
            )
        return stream

    def take(
        self, images: Any, out: Any, *, manifest: Manifest, styles: int | None, stream: int, shared: bool
    ) -> GpuPictures:
        """Return pictures and memory for the results, both ready for later work in a stream.

        Args:
            images: The pictures.
            out: The caller's memory for results; None for a new array of the library of ``images``.
            manifest: Of the model.
            styles: The size of the results' style axis; None if they have none.
            stream: The handle.
            shared: The stream is the caller's, and not our own.

        Raises:
            InputError: An array is not on this GPU, not uint8, not contiguous, or of another shape.
        """
        if not shared:  # an array without a stream of its own belongs to the default stream
            self._wait_for_default(stream, images, out)
        count, single = _count(_shape(images), manifest)
        size = (manifest.output.height, manifest.output.width, 3)
        shape = (*(() if single else (count,)), *(() if styles is None else (styles,)), *size)
        # The new memory comes first: the library's allocator orders it in the library's own stream, and our
        # stream is ordered after that one when the images are taken.
        result = _new_like(images, shape, stream if shared else None) if out is None else out
        source = self._view(images, "the picture", stream)
        target = self._view(result, "out", stream)
        if tuple(target.shape) != shape:
            raise InputError(f"out must be a uint8 array {list(shape)}, got {list(target.shape)}")
        if target.readonly:
            raise InputError("out is read-only; pass a writable array")
        ends_before = target.ptr + math.prod(shape) <= source.ptr
        if not ends_before and target.ptr < source.ptr + math.prod(source.shape):
            raise InputError("out shares memory with the picture; pass memory of its own")
        return GpuPictures(
            source=source.ptr,
            count=count,
            target=target.ptr,
            result=result,
            views=(source, target, images, result),
        )

    def _view(self, array: Any, what: str, stream: int) -> Any:
        """Return cuda-core's view of a uint8 array whose content is ready for later work in a stream."""
        given = array
        if hasattr(type(array), "__dlpack_device__"):
            self._check_index(int(array.__dlpack_device__()[1]), what)  # before its library enqueues anything
        else:
            interface = getattr(array, "__cuda_array_interface__", None)
            if not isinstance(interface, Mapping) or interface.get("version", 0) < 2 or interface.get("mask"):
                raise InputError(
                    f"{what} is {type(array).__name__}; expected a uint8 array on {self._device.name} with "
                    "DLPack, or with version 2 or 3 of __cuda_array_interface__ and without a mask"
                )
            self._check_address(int(interface["data"][0]), what)
            if interface.get("stream"):
                self._check_stream(int(interface["stream"]), f"the stream that {what} names")
            # Version 2 has no stream, and cuda-core reads version 3 only.
            given = SimpleNamespace(__cuda_array_interface__={**interface, "version": 3})
        view_class = _strided_memory_view()
        try:
            view = view_class.from_any_interface(given, stream_ptr=stream)
        except (BufferError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise InputError(
                f"{what} cannot be read through DLPack or CUDA Array Interface: {error}"
            ) from error
        except Exception as error:  # cuda-core's own class
            raise BackendError(f"{what} cannot be read on {self._device.name}: {error}") from error
        if view.dtype != np.uint8:
            raise InputError(
                f"{what} has dtype {view.dtype}; expected uint8 from 0 to 255, as NumPy pictures have"
            )
        _check_contiguous(tuple(view.shape), view.strides, what)
        self._check_address(view.ptr, what)
        return view

    def _wait_for_default(self, stream: int, *arrays: Any) -> None:
        if all(array is None or hasattr(type(array), "__dlpack__") for array in arrays):
            return
        with closing(Resources(self._device)) as made:
            event = made.event()
            self._device.call("cuEventRecord", event, LEGACY_DEFAULT)
            self._device.call("cuStreamWaitEvent", stream, event, 0)

    def _check_stream(self, stream: int, what: str) -> None:
        if stream in self._checked_streams:
            return
        try:
            context = self._device.call("cuStreamGetCtx", stream)
        except BackendError as error:
            raise InputError(f"{what} cannot be used: {error}") from error
        if not self._device.owns(context):
            raise InputError(f"{what} belongs to another CUDA context; {SHARE_CONTEXT}")
        self._checked_streams.add(stream)

    def _check_address(self, address: int, what: str) -> None:
        if address in self._checked_addresses:
            return
        call, attributes = self._device.call, self._device.driver.CUpointer_attribute
        try:
            index = call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
        except BackendError as error:
            raise InputError(f"{what} is at {address:#x}, which is not GPU memory ({error})") from error
        self._check_index(int(index), what)
        try:
            context = call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_CONTEXT, address)
        except BackendError:  # memory of pools and of virtual addresses belongs to no context
            context = None
        if context is not None and int(context) and not self._device.owns(context):
            raise InputError(f"{what} is memory of another CUDA context; {SHARE_CONTEXT}")
        if len(self._checked_addresses) >= 1024:
            self._checked_addresses.clear()
        self._checked_addresses.add(address)

    def _check_index(self, index: int, what: str) -> None:
        if index != self._device.index:
            raise InputError(
                f"{what} is on cuda:{index} and this translator on {self._device.name}; move one of them: "
                f"tensor.to({self._device.name!r}), or Translator(..., device='cuda:{index}')"
            )


def stream_handle(stream: Any) -> int:
    """Return the handle of a stream; 0 becomes 1, the legacy default stream.

    Args:
        stream: The handle as an int; or an object with ``__cuda_stream__`` (cuda.core and others),
            ``cuda_stream`` (PyTorch), ``ptr`` (CuPy) or ``handle`` (pycuda, Numba).

    Raises:
        InputError: It is none of these.
    """
    handle: Any = None if isinstance(stream, bool) else stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        handle = (protocol() if callable(protocol) else protocol)[1]  # a property in early drafts
    elif not isinstance(stream, int):
        found = [getattr(stream, name, None) for name in ("cuda_stream", "ptr", "handle")]
        handle = next((value for value in found if value is not None and not callable(value)), None)
    if hasattr(handle, "value"):  # a ctypes pointer, as Numba has it; None is the default stream
        handle = handle.value or 0
    try:
        number = -1 if handle is None else int(handle)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise InputError(
            f"stream is {stream!r:.80}; expected the handle of a CUDA stream as an int, or a stream of "
            "PyTorch, CuPy, pycuda or cuda.core"
        )
    return number or LEGACY_DEFAULT


def _strided_memory_view() -> Any:
    try:
        return importlib.import_module("cuda.core.utils").StridedMemoryView
    except ImportError as error:
        raise DeviceError(
            f"arrays on a GPU need NVIDIA's cuda-core ({error}); install it with: {INSTALL_BINDINGS}"
        ) from error


def _new_like(array: Any, shape: tuple[int, ...], stream: int | None) -> Any:
    """Return a new uint8 array of another one's library, for a stream; None for the current one."""
    handle = 0 if stream == LEGACY_DEFAULT else stream  # as both libraries name the default stream
    if hasattr(array, "new_empty"):
        cuda = sys.modules["torch"].cuda
        outside = None if handle is None else cuda.ExternalStream(handle, device=array.device)
        with nullcontext() if outside is None else cuda.stream(outside):
            return array.new_empty(shape)
    if type(array).__module__.partition(".")[0] == "cupy":
        cupy = sys.modules["cupy"]
        with nullcontext() if handle is None else cupy.cuda.ExternalStream(handle):
            return cupy.empty(shape, np.uint8)
    raise InputError(
        f"results are made for PyTorch and CuPy only, and the picture is {type(array).__name__}; pass "
        f"out=, a uint8 array {list(shape)} on the same GPU"
    )


def _shape(array: Any) -> tuple[int, ...]:
    shape = getattr(array, "shape", None)
    return tuple(array.__cuda_array_interface__["shape"] if shape is None else shape)


def _count(shape: tuple[int, ...], manifest: Manifest) -> tuple[int, bool]:
    """Return the number of pictures, and whether it is a single one instead of a batch."""
    spec = manifest.input
    assert spec is not None
    forms: list[tuple[int, ...]] = [(spec.height, spec.width, spec.channels)]
    if spec.channels == 1:
        forms.append((spec.height, spec.width))
    if shape in forms:
        return 1, True
    if shape[1:] in forms and shape[0] > 0:
        return shape[0], False
    expected = " or ".join(f"{list(form)}, [N, {', '.join(map(str, form))}]" for form in forms)
    raise InputError(
        f"the picture on the GPU has shape {list(shape)}; expected {expected}: there, nothing is resized or "
        "converted. Resize it first (torchvision, CuPy, cv2.cuda), or pass a NumPy array"
    )


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, what: str) -> None:
    expected = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    if strides is None or all(
        size == 1 or found == wanted for size, found, wanted in zip(shape, strides, expected, strict=True)
    ):
        return
    raise InputError(
        f"{what} has the strides {list(strides)}; expected {list(expected)}: make it contiguous, with "
        "tensor.contiguous() in PyTorch, cupy.ascontiguousarray(array) in CuPy"
    )
