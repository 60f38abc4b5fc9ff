"""A server in a process of its own, as users start it, for measurements from outside."""

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs."""

    address: str
    port: int
    process: "subprocess.Popen[str]"

    def memory_mib(self) -> float:
        """Return the memory that the server holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def started(engine: Path, *options: str) -> Iterator[Server]:
    """Start ``psp-rt serve`` on a free port, wait until it is ready, and stop it in the end."""
    command: Sequence[str] = [
        *(sys.executable, "-m", "psp_rt", "serve", str(engine), "--port", "0"),
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise RuntimeError(f"the server did not start: {''.join(lines)}")
            # The log must be read, or the server waits for its reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            server = Server(address=found[0], port=int(found[1]), process=process)
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait(server: Server) -> None:
    for _ in range(10 * READY_SECONDS):
        try:
            with urllib.request.urlopen(f"{server.address}/readyz"):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server is not ready after {READY_SECONDS} seconds")
