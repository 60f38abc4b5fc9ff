"""Hostile checkpoints: no reader runs what a file asks for, nor takes more memory than the file has.

The readers run in one child process with little memory, so that a bomb is an error there, not here.
"""

import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = 3 * 2**30  # of address space; importing torch takes about half
TAKEN = 200 * 2**20  # most that reading any of these files may add
SECONDS = 240
GADGETS = [
    *("os.system", "os.popen", "os.mkdir", "os.execv", "os.putenv", "posix.system", "subprocess.Popen"),
    *("subprocess.check_output", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open"),
    *("builtins.getattr", "builtins.setattr", "builtins.__import__", "importlib.import_module"),
    *("runpy.run_path", "shutil.rmtree", "pty.spawn", "socket.create_connection", "webbrowser.open"),
    *("pickle.loads", "torch.load", "torch.hub.load", "torch.jit.load", "numpy.load", "ctypes.CDLL"),
    *("operator.attrgetter", "functools.partial", "types.FunctionType", "code.interact", "timeit.timeit"),
]
READERS = """
import resource, sys
from pathlib import Path
from export.checkpoints.load import load
from psp_rt.errors import PspError
from trainer import checkpoint
from trainer.losses.identity import Identity
from trainer.losses import weight_files
readers = {
    "export": load,
    "generator": checkpoint.load_generator,
    "trainer": checkpoint.load,
    "weights": lambda path: weight_files.read(path, source="weights"),
}
def hook(event, args):
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.mkdir", "exec", "compile", "ctypes.dlopen",
                 "socket.connect", "shutil.rmtree", "webbrowser.open", "os.putenv") and active:
        print("RAN", event, flush=True)
active = []
sys.addaudithook(hook)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:  # whatever is imported late is imported now
    weight_files.read(Path(sys.argv[1]), source="weights")
    load(Path(sys.argv[1]))
except PspError:
    pass
for path in map(Path, sys.argv[2:]):
    for name, read in readers.items():
        before = peak()
        active.append(1)
        try:
            read(path)
            result = "read"
        except PspError as error:
            result = "refused " + " ".join(str(error).split())[:300]
        except BaseException as error:
            result = f"CRASHED {type(error).__name__}: {error}"
        active.clear()
        print(path.name, name, (peak() - before) * 1024, result, sep="\\t", flush=True)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what each reader makes of each file: bytes taken, and the result."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in {**gadget_files(), **bombs()}.items():
        (folder / name).write_bytes(content)
    (folder / "harmless.pt").write_bytes(zipped(b"\x80\x02}."))
    paths = sorted(path for path in folder.iterdir() if path.name != "harmless.pt")

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    done = subprocess.run(
        [sys.executable, "-c", READERS, str(folder / "harmless.pt"), *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RAN" not in done.stdout
    found = {}
    for line in done.stdout.splitlines():
        name, reader, taken, result = line.split("\t")
        found[name, reader] = int(taken), result
    assert len(found) == 4 * len(paths)
    return found


# Files that ask to run something.


def call(function):
    """Return the operations that call a function with a text."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n".encode() + b"X\x04\x00\x00\x00evil\x85R"


def wrappings(inner):
    """Yield files that hold the same operations, by name."""
    yield "bare.pkl", b"\x80\x02" + inner + b"."
    yield "named.pkl", b"\x80\x02}X\x05\x00\x00\x00G_ema" + inner + b"s."
    yield "stacked.pkl", b"\x80\x04" + stacked(inner) + b"."
    whole = b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w" + inner + b"ss."
    yield "zip.pt", zipped(whole)
    yield "options.pt", zipped(b"\x80\x02}X\x04\x00\x00\x00opts" + inner + b"s.")
    yield "old.pt", old(whole)
    outer = b"\x80\x02ctorch.storage\n_load_from_bytes\nB"
    bytes_ = old(b"\x80\x02" + inner + b".")
    yield "nested.pkl", outer + struct.pack("<I", len(bytes_)) + bytes_ + b"\x85R."


def stacked(inner):
    """Return the operations with the name of the function taken from the stack (protocol 4)."""
    head, name, rest = inner.split(b"\n", 2)
    texts = (head[1:], name)
    return b"".join(b"\x8c" + bytes([len(text)]) + text for text in texts) + b"\x93" + rest


def zipped(pickled, *, compress=zipfile.ZIP_STORED, **storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key.lstrip('_')}", data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def old(pickled, keys=(), data=b""):
    parts = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return b"".join(parts) + pickled + pickle.dumps(list(keys), 2) + data


def gadget_files():
    return {f"{g}-{name}": content for g in GADGETS for name, content in wrappings(call(g))}


def test_nothing_that_a_file_names_is_run(results):
    assert len(gadget_files()) >= 30 * 7
    for name in gadget_files():
        for reader in ("export", "generator", "trainer", "weights"):
            _, result = results[name, reader]
            assert result.startswith("refused"), (name, reader, result)
        _, result = results[name, "export"]
        assert name.rsplit("-", 1)[0] in result, (name, result)


# Files that claim more than they hold.


def tensor(numbers, size, stride, *, kind="FloatStorage", key="0"):
    """Return the operations that make a tensor."""
    storage = b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x00" + key.encode()
    storage += b"X\x03\x00\x00\x00cpu" + integer(numbers) + b"tQ"
    shapes = b"".join(b"(" + b"".join(map(integer, sides)) + b"t" for sides in (size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shapes + b"\x89}tR"


def integer(number):
    data = number.to_bytes(9, "little")
    return b"\x8a\x09" + data


def model(*operations):
    """Return a pickle of a generator whose first tensors are given."""
    names = ("conv1.activate.bias", "conv1.conv.modulation.weight", "convs.1.activate.bias")
    items = b"".join(
        b"X" + struct.pack("<I", len(name)) + name.encode() + operation + b"s"
        for name, operation in zip(names, operations, strict=False)
    )
    return b"\x80\x02}X\x05\x00\x00\x00g_ema}" + items + b"s."


def safetensors(entries, data=b"", **more):
    header = json.dumps({**entries, **more}).encode()
    return struct.pack("<Q", len(header)) + header + data


def bombs():
    huge = 2**40
    entry = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, huge]}
    doubled = b"\x80\x02)" + b"2\x86" * 60  # tuples of two, each holding the one before twice
    return {
        "zip-numbers.pt": zipped(model(tensor(huge, (4,), (1,))), _0=bytes(16)),
        "zip-shape.pt": zipped(model(tensor(4, (huge,), (1,))), _0=bytes(16)),
        "zip-stride.pt": zipped(
            model(tensor(4, (2**31,), (0,)), tensor(4, (2**31, 8), (0, 0))), _0=bytes(16)
        ),
        "zip-negative.pt": zipped(
            b"\x80\x02}X\x01\x00\x00\x00a" + tensor(4, (4,), (2**63,)) + b"s.", _0=bytes(16)
        ),
        "zip-missing.pt": zipped(model(tensor(4, (4,), (1,)))),
        "zip-compressed.pt": zipped(
            model(tensor(2**26, (2**26,), (1,))), compress=zipfile.ZIP_DEFLATED, _0=bytes(2**28)
        ),
        "zip-compressed-pickle.pt": zipped(
            b"\x80\x02" + b"N0" * 2**24 + b"N.", compress=zipfile.ZIP_DEFLATED
        ),
        "zip-overlap.pt": overlapping(),
        "old-numbers.pt": old(model(tensor(huge, (4,), (1,))), ["0"], bytes(24)),
        "old-many.pt": old(
            b"\x80\x02(" + b"".join(tensor(2**8, (4,), (1,), key=chr(48 + i)) for i in range(60)) + b"l.",
            ["0"],
        ),
        "memo.pkl": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "memo-zip.pt": zipped(b"\x80\x02Nr\xff\xff\xff\x7f."),
        "bytes.pkl": b"\x80\x04\x8e" + struct.pack("<Q", huge) + b"abc",
        "text.pkl": b"\x80\x04\x8d" + struct.pack("<Q", huge) + b"abc",
        "bytearray.pkl": b"\x80\x05\x96" + struct.pack("<Q", huge) + b"abc",
        "bytearray-size.pkl": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        "frame.pkl": b"\x80\x04\x95" + struct.pack("<Q", huge) + b"N.",
        "tuples.pkl": doubled + b".",
        "tuples-key.pkl": b"\x80\x02}" + doubled[2:] + b"Ns.",
        "tuples-key.pt": zipped(b"\x80\x02}" + doubled[2:] + b"Ns."),
        "deep.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "deep.pt": zipped(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "cycle.pt": zipped(b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s."),
        "modules.pkl": modules_bomb(),
        "array.pkl": b"\x80\x02cnumpy\nndarray\n(" + integer(huge) + b"tR.",
        "dtype.pkl": b"\x80\x02cnumpy\ndtype\n(X\x0b\x00\x00\x00U2000000000tR.",
        "safe-huge.safetensors": safetensors({"conv1.activate.bias": entry}),
        "safe-shape.safetensors": safetensors(
            {"conv1.activate.bias": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 16]}}, bytes(16)
        ),
        "safe-negative.safetensors": safetensors(
            {"conv1.activate.bias": {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]}}, bytes(16)
        ),
        "safe-header.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "safe-deep.safetensors": struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
        "safe-list.safetensors": safetensors({"a": [1]}),
    }


def modules_bomb():
    """Return a network pickle of modules that each contain the one below twice: 2^40 tensors."""
    network = OrderedDict(_parameters={}, _buffers={}, _modules={})
    content = pickle.dumps(dict(network), 2)[2:-1]
    body = wrapped(content)
    for _ in range(40):
        # The module on top of the stack becomes both children of the next one.
        body = (
            body
            + b"r\x00\x01\x00\x000"
            + wrapped(
                b"}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}X\x08\x00\x00\x00_modules}("
                b"X\x01\x00\x00\x00aj\x00\x01\x00\x00X\x01\x00\x00\x00bj\x00\x01\x00\x00uu"
            )
        )
    return b"\x80\x02" + body + b"r\x01\x01\x00\x000}X\x05\x00\x00\x00G_emaj\x01\x01\x00\x00s."


def wrapped(state):
    meta = b"}(X\x0a\x00\x00\x00class_nameX\x01\x00\x00\x00GX\x05\x00\x00\x00state" + state + b"u"
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"


def overlapping():
    """Return a zip whose directory lists one member 1,000 times under other names."""
    content = bytearray(zipped(b"\x80\x02N.", _0=bytes(2**12)))
    end = content.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", content[end + 16 : end + 20])[0]
    entries = bytes(content[start:end])
    repeated = entries * 1000
    tail = bytearray(content[end:])
    tail[8:12] = struct.pack("<HH", 3000, 3000)
    tail[12:16] = struct.pack("<I", len(repeated))
    return bytes(content[:start]) + repeated + bytes(tail)


def test_no_file_takes_more_memory_than_it_has(results):
    for name in bombs():
        for reader in ("export", "generator", "trainer", "weights"):
            taken, result = results[name, reader]
            assert "CRASHED" not in result, (name, reader, result)
            assert taken < TAKEN, (name, reader, taken, result)
            assert result.startswith("refused") or reader == "weights", (name, reader, result)
