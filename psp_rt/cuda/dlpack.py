"""DLPack, the exchange of arrays between libraries without a copy: the part that bytes on a GPU need.

The structures are those of dlpack.h 1.0 (https://dmlc.github.io/dlpack/latest/c_api.html). A capsule that
is read here stays whole: its own destructor gives the memory back once nobody holds it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

CPU, CUDA, CUDA_MANAGED = 1, 2, 13  # DLDeviceType
_UNSIGNED = 1  # DLDataTypeCode
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _Kind(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("kind", _Kind),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What a capsule says; its memory is there as long as the capsule."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None where rows follow each other without gaps
    dtype: str
    device_type: int
    device_index: int
    read_only: bool
    capsule: Any


def read(capsule: Any) -> Lent:
    """Return what a capsule says.

    Raises:
        InputError: It is no capsule, was used before, or is of a version that nobody here knows.
    """
    tensor, read_only = _tensor(capsule)
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    return Lent(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=strides,
        dtype=_dtype(tensor.kind),
        device_type=tensor.device.type,
        device_index=tensor.device.index,
        read_only=read_only,
        capsule=capsule,
    )


def lend(
    address: int, shape: tuple[int, ...], *, device_index: int, owner: Any, versioned: bool = False
) -> Any:
    """Return a capsule of uint8 on a CUDA device, which keeps ``owner`` until the last consumer is done.

    NumPy makes it, of an array that it never looks into, and only the device is changed: its destructor
    and deleter are compiled code, safe also while an exception is on its way and when Python ends.

    Args:
        versioned: Make one of DLPack 1.0, where this NumPy can.
    """
    array = np.asarray(_Memory(address, shape, owner))
    capsule = _numpy_capsule(array, versioned)
    tensor, _ = _tensor(capsule)
    tensor.device.type, tensor.device.index = CUDA, device_index
    return capsule


class _Memory:
    """Memory as NumPy takes it, with what keeps it alive."""

    def __init__(self, address: int, shape: tuple[int, ...], owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": "|u1",
            "version": 3,
        }


def _numpy_capsule(array: Any, versioned: bool) -> Any:
    if not versioned:
        return array.__dlpack__()
    try:
        return array.__dlpack__(max_version=(1, 0))
    except TypeError:  # before NumPy 2.1
        return array.__dlpack__()


def _tensor(capsule: Any) -> tuple[_Tensor, bool]:
    """Return the capsule's tensor, which may be written to, and whether its data may not be."""
    api = ctypes.pythonapi
    api.PyCapsule_IsValid.argtypes = api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    if api.PyCapsule_IsValid(capsule, _PLAIN):
        return _Tensor.from_address(api.PyCapsule_GetPointer(capsule, _PLAIN)), False
    if not api.PyCapsule_IsValid(capsule, _VERSIONED):
        raise InputError(
            f"__dlpack__() gave {capsule!r:.80}; expected a DLPack capsule that was not used yet"
        )
    managed = _Versioned.from_address(api.PyCapsule_GetPointer(capsule, _VERSIONED))
    if managed.major != 1:
        raise InputError(f"the DLPack capsule has version {managed.major}.{managed.minor}; expected 1.0 up")
    return managed.tensor, bool(managed.flags & _READ_ONLY)


def _dtype(kind: _Kind) -> str:
    if (kind.code, kind.bits, kind.lanes) == (_UNSIGNED, 8, 1):
        return "uint8"
    return f"DLPack's type {kind.code} of {kind.bits} bits"
