"""Read pickles without running any code that they contain, and within the memory that they hold themselves.

A pickle may name any function to be called. Here the names are limited to tensors, plain containers and the
few plain values that training code leaves among its options; any other name is an error that shows it. What
they build are objects of this module, which a pickle cannot change, and which become tensors, arrays and
plain containers at the end. Before it is loaded, a pickle is scanned for claims that would fill the memory.
"""

import argparse
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Makers = dict[tuple[str, str], Any]
MOST_MEMO = 256  # numbers of the memo may exceed the number of operations by this
MOST_WEIGHT = 10**6  # objects in one tuple, counting repetitions: to hash it means to visit them all
DTYPES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8},
    **{"QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
SMALL = 2**16  # numbers; a tensor below this may repeat its storage


class Source(Protocol):
    """What a pickle is read from: no read returns more than the source holds."""

    def read(self, size: int = -1, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...
    def seek(self, position: int, /) -> int: ...


class Opaque:
    """Something in a file that is not a tensor of plain numbers, a plain value or a container."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a state for {self.kind}")


class Maker(Opaque):
    """A function that a pickle may call. Unlike on a plain function, it cannot set attributes on it."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__("a function")
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class Storage(Opaque):
    """Memory of tensors."""

    __slots__ = ("dtype", "memory")

    def __init__(self, dtype: torch.dtype, memory: torch.UntypedStorage) -> None:
        super().__init__("a storage")
        self.dtype = dtype
        self.memory = memory


class StorageType(Opaque):
    """The type of a storage, as a pickle names it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__("a storage type")
        self.dtype = dtype


class HeldTensor(Opaque):
    """A tensor in the file: a view of a storage."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(
        self,
        storage: Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("a tensor")
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage, self.dtype = storage, dtype or storage.dtype
        self.offset, self.size, self.stride = int(offset), tuple(map(int, size)), tuple(map(int, stride))

    def tensor(self) -> Tensor:
        """Return the tensor, if its storage holds all of it."""
        held = self.storage.memory.nbytes() // self.dtype.itemsize
        numbers = int(np.prod(self.size, dtype=object)) if self.size else 1
        last = self.offset + sum((side - 1) * step for side, step in zip(self.size, self.stride, strict=True))
        negative = min((self.offset, *self.size, *self.stride)) < 0
        if negative or (numbers and last >= held) or numbers > max(held, SMALL):
            raise pickle.UnpicklingError(
                f"a tensor of shape {self.size} is out of bounds of its storage of {held} numbers"
            )
        return torch.empty(0, dtype=self.dtype).set_(self.storage.memory, self.offset, self.size, self.stride)


class Nested:
    """An object of a file that holds others."""

    def resolve(self, seen: dict[int, Any]) -> None:
        """Resolve what it holds, in place."""


class HeldDtype(Opaque):
    """A NumPy type."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: object) -> None:
        super().__init__("a NumPy type")
        if not (isinstance(code, str) and re.fullmatch(r"[<>=|]?[?a-zA-Z]\d{0,9}", code)):
            raise pickle.UnpicklingError(f"the NumPy type {code!r:.40}")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if self.code[0] not in "<>=|" and state[1] in ("<", ">"):
            self.code = state[1] + self.code

    def dtype(self) -> np.dtype[Any]:
        """Return the type; those of objects are refused."""
        found = np.dtype(self.code)
        if found.kind not in "fiubSU":
            raise pickle.UnpicklingError(f"the NumPy type {self.code!r}")
        return found


class HeldArray(Opaque):
    """A NumPy array."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        super().__init__("an array")
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Any:
        """Return the array, or an opaque value for an array of objects."""
        try:
            _, size, dtype, fortran, data = self.state
            flat = np.frombuffer(data, dtype.dtype())
            return flat.reshape(size[::-1]).T if fortran else flat.reshape(size)
        except (TypeError, ValueError, AttributeError, pickle.UnpicklingError):
            return Opaque("an array of objects")


def _array_of_buffer(data: bytes, dtype: HeldDtype, size: tuple[int, ...], order: str = "C") -> HeldArray:
    held = HeldArray()
    held.state = (1, size, dtype, order == "F", bytes(data))
    return held


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that an old pickle protocol stores as text."""
    if encoding != "latin1":  # looking up another codec may import a module
        raise pickle.UnpicklingError(f"the encoding {encoding!r:.40}")
    return text.encode("latin1")


def _made(make: object, args: tuple[Any, ...]) -> Any:
    if not isinstance(make, Maker):
        raise pickle.UnpicklingError("a tensor made by no known function")
    return make(*args)


def _scalar(kind: HeldDtype, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype())[0].item()


def _bytes(data: Any = b"", *_: object) -> bytes:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("bytes of something else")  # a number would be a size
    return data


def plain_makers() -> Makers:
    """Return what a checkpoint may name, by module and name; new for each file."""

    class Namespace(argparse.Namespace):
        """Options. A new class for each file, because a pickle can change it."""

    class EasyDict(dict[Any, Any]):
        """A dictionary with attributes, likewise."""

    makers: Makers = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): Maker(lambda *_: {}),
        ("argparse", "Namespace"): Namespace,
        ("easydict", "EasyDict"): EasyDict,
        ("torch", "Size"): Maker(tuple),
        ("torch", "device"): Maker(lambda *_: "cpu"),
        ("torch", "Tensor"): Opaque("a type"),
        ("torch.nn.parameter", "Parameter"): Opaque("a type"),
        ("torch._utils", "_rebuild_tensor"): Maker(HeldTensor),
        ("torch._utils", "_rebuild_tensor_v2"): Maker(HeldTensor),
        ("torch._utils", "_rebuild_tensor_v3"): Maker(
            lambda storage, offset, size, stride, gradient, hooks, dtype, *_: HeldTensor(
                storage, offset, size, stride, dtype=dtype
            )
        ),
        ("torch._utils", "_rebuild_parameter"): Maker(lambda tensor, *_: tensor),
        ("torch._utils", "_rebuild_parameter_with_state"): Maker(lambda tensor, *_: tensor),
        ("torch._tensor", "_rebuild_from_type_v2"): Maker(lambda make, kind, args, state: _made(make, args)),
        ("torch._utils", "_rebuild_qtensor"): Maker(lambda *_: Opaque("a quantized tensor")),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): Maker(lambda *_: Opaque("a meta tensor")),
        ("torch._utils", "_rebuild_sparse_tensor"): Maker(lambda *_: Opaque("a sparse tensor")),
        ("torch.serialization", "_get_layout"): Maker(lambda name: name),
        ("numpy", "dtype"): Maker(HeldDtype),
        ("numpy", "ndarray"): Opaque("a type"),
        ("_codecs", "encode"): Maker(_encode),
    }
    for home in ("builtins", "__builtin__"):
        makers[home, "set"] = set
        makers[home, "bytearray"] = Maker(_bytes)
        makers[home, "bytes"] = Maker(_bytes)
    for name, dtype in DTYPES.items():
        makers["torch", f"{name}Storage"] = makers["torch.storage", f"{name}Storage"] = StorageType(dtype)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            makers["torch", name] = value
    for scheme in ("per_tensor_affine", "per_channel_affine"):
        makers["torch", scheme] = Opaque("a type")
    for system in ("Posix", "Windows", "PurePosix", "PureWindows"):
        for module in ("pathlib", "pathlib._local"):
            makers[module, f"{system}Path"] = Maker(lambda *_: Opaque("a path"))
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray", "scalar"] = Maker(_scalar)
        makers[f"{core}.multiarray", "_reconstruct"] = Maker(HeldArray)
        makers[f"{core}.numeric", "_frombuffer"] = Maker(_array_of_buffer)
    return makers


class Unpickler(pickle.Unpickler):
    """Builds what is listed and refuses everything else."""

    def __init__(
        self, source: Source, makers: Makers, storage: Callable[[StorageType, str, int], Storage] | None
    ) -> None:
        """Take a source, what it may name, and how to get the memory of a key with a number of elements."""
        super().__init__(source)
        self._makers = makers
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, or refuse it."""
        try:
            return self._makers[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage."""
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something outside of the file")
        _, kind, key, _, numbers, *view = pid
        if not isinstance(kind, StorageType) or type(numbers) is not int or numbers < 0 or any(view):
            raise pickle.UnpicklingError(f"the storage {key!r:.40} of {numbers!r:.40} numbers")
        return self._storage(kind, str(key), numbers)


def load(
    source: Source, makers: Makers, storage: Callable[[StorageType, str, int], Storage] | None = None
) -> Any:
    """Scan a pickle, then return what it holds, still with the objects of this module in it.

    Raises:
        Exception: It is damaged or not allowed; pickles raise many kinds of errors.
    """
    start = source.tell()
    scan(source)
    source.seek(start)
    return Unpickler(source, makers, storage).load()


def scan(source: Source) -> None:
    """Refuse a pickle that would take more memory or time than its size can justify.

    Lengths beyond its end, numbers of the memo that no pickler writes, and tuples that contain each other
    so often that hashing one takes forever.
    """
    stack: list[int] = []  # the weight of each object
    marks: list[int] = []
    memo: dict[int, int] = {}
    for number, (op, arg, _) in enumerate(pickletools.genops(source)):  # type: ignore[arg-type]
        name = op.name
        if name.startswith("EXT") or name in ("NEXT_BUFFER", "READONLY_BUFFER"):
            raise pickle.UnpicklingError(f"the operation {name}")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if arg is None else int(str(arg))
            if slot > number + MOST_MEMO:
                raise pickle.UnpicklingError(f"the number {slot} of the memo")
            memo[slot] = stack[-1] if stack else 1
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(str(arg)), 1))
        else:
            _weigh(op, stack, marks)


def _weigh(op: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> None:
    """Replace what an operation takes from the stack by what it leaves there."""
    taken: list[int] = []
    if pickletools.markobject in op.stack_before or op.name == "POP_MARK":
        start = marks.pop() if marks else 0
        taken, stack[start:] = stack[start:], []
        before = op.stack_before.index(pickletools.markobject) if op.stack_before else 0
    else:
        before = len(op.stack_before)
    for _ in range(before):
        taken.append(stack.pop() if stack else 1)
    if op.name == "DUP":
        stack += [*taken, *taken]
        return
    hashable = "TUPLE" in op.name or op.name in ("REDUCE", "NEWOBJ", "FROZENSET", "OBJ")
    weight = 1 + sum(taken) if hashable else 1
    if weight > MOST_WEIGHT:
        raise pickle.UnpicklingError("tuples that contain each other too often")
    stack += [weight] * len(op.stack_after)


def resolve(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Return what was loaded as plain containers, tensors and arrays. Objects met twice stay one."""
    seen = {} if seen is None else seen
    if isinstance(value, str | bytes | int | float | None | torch.dtype):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    found: Any = value
    if isinstance(value, HeldTensor):
        found = value.tensor()
    elif isinstance(value, HeldArray):
        found = value.array()
    elif isinstance(value, HeldDtype):
        found = value.code
    elif isinstance(value, dict):
        found = {}
        seen[id(value)] = value, found
        found.update((resolve(key, seen), resolve(inner, seen)) for key, inner in dict.items(value))
    elif isinstance(value, list):
        found = []
        seen[id(value)] = value, found
        found.extend(resolve(inner, seen) for inner in value)
    elif isinstance(value, tuple):
        found = tuple(resolve(inner, seen) for inner in value)
    elif isinstance(value, Nested):
        seen[id(value)] = value, value
        value.resolve(seen)
    elif isinstance(value, argparse.Namespace):
        found = argparse.Namespace()
        seen[id(value)] = value, found
        vars(found).update({str(key): resolve(inner, seen) for key, inner in vars(value).items()})
    seen[id(value)] = value, found
    return found


def refusal(error: Exception) -> str | None:
    """Return what a pickle asked to run, if that is why it was refused."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else None
