"""Try an engine from a stranger in a process of its own, under limits of memory and time.

`psp_rt.Translator` checks a file before a runtime sees it, and opens it in process. Where even a crash of a
runtime must not end the program, this opens and runs the file once in a child first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from .errors import FormatError, InputError

SECONDS, MEMORY_MIB = 60.0, 8192  # enough for the official models at full size
EXIT_REFUSED = 3  # of the child, if psp_rt refuses the file itself
_TRIAL = """
import sys
if sys.platform == "linux":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import numpy, psp_rt
try:
    with psp_rt.Translator(sys.argv[1], device="cpu") as translator:
        translator.generate(translator.sample(0))
        spec = translator.manifest.input
        if spec is not None:
            translator.run(numpy.zeros((spec.height, spec.width, spec.channels), numpy.uint8))
        print(f"{translator.manifest.task} on {translator.backend}, {translator.precision}")
except psp_rt.PspError as error:
    print(error)
    sys.exit(3)
"""


def verify(path: str | os.PathLike[str], *, seconds: float = SECONDS, memory_mib: int = MEMORY_MIB) -> str:
    """Open an engine and run it once in a child process.

    Args:
        path: The engine file.
        seconds: How long the child may take.
        memory_mib: How much address space it may use; on Linux only.

    Returns:
        What ran: "sketch on openvino, fp32".

    Raises:
        FormatError: The file is not a usable engine, ended the child, or exceeded a limit.
    """
    if seconds <= 0 or memory_mib < 1:
        raise InputError(f"the limits are {seconds} seconds and {memory_mib} MiB; expected more than 0")
    command = [sys.executable, "-c", _TRIAL, os.fspath(path), str(memory_mib << 20)]
    package_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        raise FormatError(f"{path} was not opened and run within {seconds:g} seconds") from None
    said = done.stdout.strip()
    if done.returncode == 0:
        return said
    if done.returncode == EXIT_REFUSED:
        raise FormatError(said)
    if done.returncode < 0:
        raise FormatError(f"{path} ended the process that opened it: {signal.Signals(-done.returncode).name}")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise FormatError(f"{path} failed in the process that opened it (limit {memory_mib} MiB): {reason[:300]}")
