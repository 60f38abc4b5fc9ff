"""Read checkpoint files without running any code that they contain, and name files of other kinds.

`trainer.checkpoint_files` reads files of tensors; this module adds network pickles.

NVIDIA's network pickles (stylegan2-ada-pytorch) store each module as a dictionary {type, version,
module_src, class_name, state}. ``module_src`` is Python source that the original loader executes. Here
a module becomes a `Persistent`, its class name with its state, and the source stays text.
"""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from export.errors import CheckpointError
from psp_rt.errors import InputError
from trainer import checkpoint_files, checkpoint_pickle
from trainer.checkpoint_files import Bounded, unreadable
from trainer.checkpoint_pickle import Maker, Makers, Nested, Storage

KNOWN_FORMATS = (
    "pSp or e4e .pt {state_dict, opts, latent_avg}; StyleGAN2 .pt {g_ema} (rosinality); "
    "stylegan2-ada .pkl {G_ema} (NVIDIA); a checkpoint of this project's trainer"
)
MOST_MODULES = 10_000  # in one network pickle; a hostile one can repeat them without end
# Files that users confuse with checkpoints, by their first bytes.
MISTAKES = {
    b"ftrt": "a TensorRT plan; give the checkpoint that it was made from",
    b"\x08": "an ONNX model; give the checkpoint that it was made from",
    b"<": "a web page, not a checkpoint (often a download that asked for confirmation); download it again",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
}


def read(path: Path) -> Any:
    """Return the content of a checkpoint file: plain containers and tensors.

    Tensors of a current ``.pt`` file and of safetensors are mapped, so that a model of a gigabyte is not
    in memory twice.

    Raises:
        CheckpointError: The file is missing, of another kind, damaged, or contains code.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        if head.startswith(b"PK"):
            _check_zip(path)
        elif head.startswith(b"\x80") and not checkpoint_files.is_old_torch(head):
            return read_pickle(path)
        if head.startswith(b"PK") or checkpoint_files.is_old_torch(head) or _is_safetensors(path, head):
            return checkpoint_files.read(path, mapped=True)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    for start, what in MISTAKES.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path} is {what}")
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise CheckpointError(f"{path} is not a checkpoint: it {found}; supported formats: {KNOWN_FORMATS}")


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is incomplete: its end is missing; download or copy it again")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except (
        zipfile.BadZipFile,
        ValueError,
        struct.error,
        NotImplementedError,
    ) as error:  # damage in its directory
        raise CheckpointError(f"{path} is damaged ({error}); download or copy it again") from None
    if "manifest.json" in names:
        raise CheckpointError(
            f"{path} is already an engine file; use it with: psp-rt run {path.name} INPUT, or get "
            f"a checkpoint back with: python models/recover.py {path.name} {path.stem}.pt"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program; give the checkpoint that it was made from")
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is a zip without a checkpoint in it; supported formats: {KNOWN_FORMATS}"
        )


@dataclass(frozen=True)
class Persistent(Nested):
    """A module in the file: its class name and its state."""

    class_name: str
    state: Mapping[str, Any]

    def resolve(self, seen: dict[int, Any]) -> None:
        """Turn what the state holds of tensors into tensors."""
        object.__setattr__(self, "state", checkpoint_pickle.resolve(self.state, seen))

    @property
    def children(self) -> dict[str, "Persistent"]:
        """The modules inside, by name."""
        return {name: child for name, child in self.state["_modules"].items() if child is not None}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return every parameter and buffer of the module and its children, by full name."""
        found: dict[str, Tensor] = {}
        rest: list[tuple[str, Persistent]] = [(prefix, self)]
        visited = 0
        while rest:
            start, module = rest.pop(0)
            visited += 1
            if visited > MOST_MODULES or len(start) > 1000:
                raise ValueError("its modules contain each other too often")
            own = {**module.state["_parameters"], **module.state["_buffers"]}
            found |= {f"{start}{name}": tensor for name, tensor in own.items() if tensor is not None}
            rest += [(f"{start}{name}.", child) for name, child in module.children.items()]
        return found


def read_pickle(path: Path) -> Any:
    """Return the content of a network pickle: containers, tensors, and modules as `Persistent`.

    Raises:
        InputError: The file is damaged, or it asks for anything else to be built.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return checkpoint_pickle.resolve(checkpoint_pickle.load(Bounded(file, size), _makers()))
        except Exception as error:  # a damaged pickle can raise almost any type of error
            raise unreadable(path, error) from error


def _is_safetensors(path: Path, head: bytes) -> bool:
    return checkpoint_files.is_safetensors(head, path.stat().st_size)


def _makers() -> Makers:
    class EasyDict(dict[Any, Any]):
        """Their dictionary with attributes. A new class for each file, because a pickle can change it."""

    return checkpoint_pickle.plain_makers() | {
        ("torch.storage", "_load_from_bytes"): Maker(_storage),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Maker(_persistent),
        ("dnnlib", "EasyDict"): EasyDict,
        ("dnnlib.util", "EasyDict"): EasyDict,
    }


def _storage(data: bytes) -> Storage:
    """Return a storage, which is a file inside the pickle."""
    found = checkpoint_files.read_bytes(data)
    if not isinstance(found, Storage):
        raise ValueError(f"bytes of a {type(found).__name__}, expected a storage")
    return found


def _persistent(meta: Mapping[str, Any]) -> Persistent:
    return Persistent(meta["class_name"], meta["state"])
