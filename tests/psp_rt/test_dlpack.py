"""Capsules of DLPack, against those of NumPy and PyTorch: other people's reading of the same header."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest
import torch

from psp_rt import InputError
from psp_rt.cuda import dlpack


class Owner:
    pass


@pytest.mark.parametrize("settings", [{}, {"max_version": (1, 0)}])
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_what_others_lend_is_read(library, settings):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    lent = dlpack.read(library(pixels).__dlpack__(**settings))
    assert (lent.address, lent.shape, lent.dtype) == (pixels.ctypes.data, (2, 3, 4), "uint8")
    assert (lent.device_type, lent.device_index, lent.read_only) == (dlpack.CPU, 0, False)
    assert lent.strides in (None, (12, 4, 1))
    turned = dlpack.read(library(pixels.transpose(2, 0, 1)).__dlpack__(**settings))
    assert turned.strides == (1, 12, 4)
    part = dlpack.read(library(pixels)[1].__dlpack__(**settings))
    assert part.address == pixels.ctypes.data + 12


def test_other_types_are_named():
    assert dlpack.read(np.zeros(3, np.float32).__dlpack__()).dtype == "DLPack's type 2 of 32 bits"


def test_read_only_memory_is_known_as_such():
    fixed = np.zeros(3, np.uint8)
    fixed.flags.writeable = False
    assert dlpack.read(fixed.__dlpack__(max_version=(1, 0))).read_only


@pytest.mark.parametrize("given", [None, 5, "capsule"])
def test_what_is_no_capsule_is_refused(given):
    with pytest.raises(InputError, match="expected a DLPack capsule that was not used yet"):
        dlpack.read(given)


def test_a_capsule_that_was_used_is_refused():
    capsule = np.zeros(3, np.uint8).__dlpack__()
    torch.utils.dlpack.from_dlpack(capsule)
    with pytest.raises(InputError, match="was not used yet"):
        dlpack.read(capsule)


@pytest.mark.parametrize("versioned", [False, True])
def test_a_lent_array_says_where_it_is(versioned):
    capsule = dlpack.lend(0x7F0000000000, (5, 7, 3), device_index=2, owner=None, versioned=versioned)
    assert ("versioned" in repr(capsule)) == versioned
    lent = dlpack.read(capsule)
    assert (lent.address, lent.shape, lent.dtype) == (0x7F0000000000, (5, 7, 3), "uint8")
    assert (lent.device_type, lent.device_index) == (dlpack.CUDA, 2)
    assert lent.strides in (None, (21, 3, 1))


@pytest.mark.parametrize("versioned", [False, True])
def test_an_owner_is_kept_as_long_as_a_capsule_that_nobody_used(versioned):
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.lend(0x7F0000000000, (3,), device_index=0, owner=owner, versioned=versioned)
    del owner
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("versioned", [False, True])
def test_an_owner_is_kept_as_long_as_a_consumer(monkeypatch, versioned):
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)  # PyTorch here knows no other device
    owner, pixels = Owner(), np.arange(6, dtype=np.uint8)
    alive = weakref.ref(owner)
    capsule = dlpack.lend(pixels.ctypes.data, (2, 3), device_index=0, owner=owner, versioned=versioned)
    tensor = torch.utils.dlpack.from_dlpack(capsule)
    del owner, capsule
    gc.collect()
    assert alive() is not None
    assert (tensor.data_ptr(), tensor.tolist()) == (pixels.ctypes.data, [[0, 1, 2], [3, 4, 5]])
    del tensor
    gc.collect()
    assert alive() is None


def test_a_consumer_that_refuses_the_device_gives_its_own_error():
    class Lender:
        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, **settings):
            return dlpack.lend(0x7F0000000000, (3,), device_index=0, owner=self)

    with pytest.raises((BufferError, RuntimeError, ValueError), match="device"):
        np.from_dlpack(Lender())


def test_a_version_from_the_future_is_refused():
    capsule = np.zeros(3, np.uint8).__dlpack__(max_version=(1, 0))
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    major = ctypes.c_uint32.from_address(get(capsule, b"dltensor_versioned"))
    major.value = 2
    with pytest.raises(InputError, match=r"DLPack capsule has version 2\.\d; expected 1.0 up"):
        dlpack.read(capsule)
    major.value = 1
