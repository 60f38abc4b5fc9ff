"""What psp-rt serve does under load: throughput, latency, memory, and clients that are slow, gone or hostile.

    python benchmarks/serve_load.py --json benchmarks/results/serve.json
    python benchmarks/serve_load.py my.engine --requests 100 --endurance 0

Each client sends its next request when it has the answer to the one before; a request that is sent away (503)
counts as rejected, and its client waits as Retry-After says. All of it runs on this machine, over loopback:
the clients take time from the server. Without an ENGINE: the demonstration model, and one of 256 pixels with
drawn weights. Pictures are of the size that the model takes, and go to it as they are: no face is looked for,
and no drawing is cleaned.
"""

import argparse
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure.serving import Server, started
from benchmarks.report import provenance
from benchmarks.workloads.models import official
from benchmarks.workloads.workload import cached_engine
from psp_rt import EngineFile
from psp_rt.files import check_writable, write_atomically

PROGRAM = "benchmarks/serve_load.py"
DEMONSTRATION = Path("models/sketch.engine")
CLIENTS = (1, 8, 64)
ABNORMAL = 200  # slow clients, and aborted uploads
GROWTH_MIB = 32  # that memory may grow by over the endurance run, after its first tenth


def picture_for(engine: Path) -> bytes:
    """Return a picture file of the size that a model takes."""
    with EngineFile.open(engine) as file:
        spec = file.manifest.input
    assert spec is not None
    picture = Image.new("RGB" if spec.channels == 3 else "L", (spec.width, spec.height), "white")
    pen, right, bottom = ImageDraw.Draw(picture), spec.width, spec.height
    for left, top, width, height in ((0.2, 0.1, 0.6, 0.8), (0.3, 0.35, 0.15, 0.1), (0.55, 0.35, 0.15, 0.1)):
        corners = (left * right, top * bottom, (left + width) * right, (top + height) * bottom)
        pen.ellipse(corners, outline="black")
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def load(server: Server, picture: bytes, *, clients: int, requests: int) -> dict[str, Any]:
    """Send requests from so many clients at once."""
    left, lock = iter(range(requests)), threading.Lock()
    seconds: list[float] = []
    statuses: dict[int, int] = {}

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            while True:
                start = time.perf_counter()
                connection.request(
                    "POST", "/v1/run?faces=off&clean=false", picture, {"content-type": "image/png"}
                )
                answer = connection.getresponse()
                answer.read()
                with lock:
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
                    if answer.status == 200:
                        seconds.append(time.perf_counter() - start)
                if answer.status != 503:
                    break
                time.sleep(float(answer.headers["retry-after"]))

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(client) for _ in range(clients)]:
            done.result()
    took = time.perf_counter() - start
    p50, p95, p99 = (round(1000 * value, 1) for value in np.percentile(seconds, [50, 95, 99]).tolist())
    return {
        "clients": clients,
        "pictures_per_second": round(len(seconds) / took, 2),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "rejected_share": round(statuses.get(503, 0) / sum(statuses.values()), 4),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def endurance(server: Server, picture: bytes, *, requests: int) -> dict[str, Any]:
    """Send many requests, and look at the server's memory after each tenth."""
    memory = []
    for _ in range(10):
        load(server, picture, clients=4, requests=requests // 10)
        memory.append(round(server.memory_mib(), 1))
    grown = round(memory[-1] - memory[0], 1)
    return {"requests": requests, "memory_mib": memory, "grown_mib": grown, "flat": grown < GROWTH_MIB}


def head(length: int, kind: str = "image/png", path: str = "/v1/run?faces=off&clean=false") -> bytes:
    """Return the lines before a body."""
    lines = (f"POST {path} HTTP/1.1", "host: x", f"content-type: {kind}", f"content-length: {length}", "", "")
    return "\r\n".join(lines).encode()


def serves(server: Server, picture: bytes) -> float:
    """Return the seconds of one request; it fails if the server does not serve."""
    start = time.perf_counter()
    load(server, picture, clients=1, requests=1)
    return round(time.perf_counter() - start, 3)


def slow_clients(server: Server, picture: bytes) -> dict[str, Any]:
    """Open many uploads that go on byte by byte; others must not wait for them."""
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(ABNORMAL)]
    for each in sockets:
        each.sendall(head(len(picture)) + picture[:100])
    times = []
    for at in range(100, 110):
        for each in sockets:
            each.sendall(picture[at : at + 1])
        times.append(serves(server, picture))
    for each in sockets[: ABNORMAL // 4]:
        each.sendall(picture[110:])  # in the end a quarter of them is complete
    answered = sum(_status(each) in (200, 503) for each in sockets[: ABNORMAL // 4])
    for each in sockets:
        each.close()
    return {
        "clients": ABNORMAL,
        "others_max_seconds": max(times),
        "completed": ABNORMAL // 4,
        "answered": answered,
    }


def aborted_uploads(server: Server, picture: bytes) -> dict[str, Any]:
    """Leave in the middle of uploads, and after complete ones without the answer."""
    for number in range(ABNORMAL):
        with socket.create_connection(("127.0.0.1", server.port)) as each:
            each.sendall(head(len(picture)) + (picture[: len(picture) // 2] if number % 2 else picture))
    return {"clients": ABNORMAL, "then_seconds": serves(server, picture)}


def hostile_bodies(server: Server, picture: bytes) -> dict[str, Any]:
    """Send what no good client sends; return each answer's status (0: the connection was closed)."""
    bomb = BytesIO()
    Image.new("1", (60_000, 60_000)).save(bomb, "PNG")  # 3.6 billion pixels in half a megabyte
    chunked = b"POST /v1/run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    requests = {
        "decompression bomb": head(len(bomb.getvalue())) + bomb.getvalue(),
        "no picture": head(9) + b"not a PNG",
        "half a picture": head(len(picture) // 2) + picture[: len(picture) // 2],
        "not the announced type": head(len(picture), "application/json") + picture,
        "form without its end": head(40, "multipart/form-data; boundary=x") + b"--x\r\n" + bytes(35),
        "deep JSON": head(200_000, "application/json") + b"[" * 200_000,
        "announced gigabytes": head(10**12),
        "negative length": head(-1),
        "huge header": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n",
        "many headers": b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
        "endless chunks": chunked + (b"100000\r\n" + bytes(2**20) + b"\r\n") * 40,
        "no HTTP": b"\x16\x03\x01" + bytes(200),
        "long query": b"GET /v1/engines?" + b"a=b&" * 10_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    }
    found = {}
    for name, data in requests.items():
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as each:
            with suppress(OSError):  # the server may close before all of it is sent
                each.sendall(data)
            found[name] = _status(each)
    return {"statuses": found, "then_seconds": serves(server, picture)}


def _status(connection: socket.socket) -> int:
    try:
        connection.settimeout(60)
        answer = connection.recv(64)
    except OSError:
        return 0
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def measure(engine: Path, *, requests: int, many: int, abnormal: bool) -> dict[str, Any]:
    """Return an engine's figures."""
    picture = picture_for(engine)
    with started(engine) as server:
        found: dict[str, Any] = {"engine": engine.name.partition(".")[0], "load": []}
        for clients in CLIENTS:
            found["load"].append(load(server, picture, clients=clients, requests=requests))
            print(f"{found['engine']}: {found['load'][-1]}", flush=True)
        parts: dict[str, Callable[[], dict[str, Any]]] = {}
        if abnormal:
            parts["slow_clients"] = lambda: slow_clients(server, picture)
            parts["aborted_uploads"] = lambda: aborted_uploads(server, picture)
            parts["hostile_bodies"] = lambda: hostile_bodies(server, picture)
        if many:
            parts["endurance"] = lambda: endurance(server, picture, requests=many)
        for name, part in parts.items():
            found[name] = part()
            print(f"{found['engine']}: {name}: {found[name]}", flush=True)
        found["memory_mib"] = round(server.memory_mib(), 1)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    grammar = argparse.ArgumentParser(
        prog="serve_load.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = grammar.add_argument
    add("engine", nargs="?", type=Path, metavar="ENGINE")
    add("--requests", type=int, default=200, help="at each number of clients (default: 200)")
    add("--endurance", type=int, default=10_000, help="requests that memory is watched over; 0: none")
    add("--json", type=Path, metavar="FILE")
    args = grammar.parse_args(arguments)
    if args.json:
        check_writable(args.json)
    engines = (
        [args.engine]
        if args.engine
        else [DEMONSTRATION, cached_engine(official("psp", 256), lambda step: print(step, flush=True))]
    )
    results = [
        measure(engine, requests=args.requests, many=0 if number else args.endurance, abnormal=not number)
        for number, engine in enumerate(engines)
    ]
    if args.json:
        found = {
            "engines": results,
            "provenance": provenance.collect(arguments, threads=2, program=PROGRAM),
        }
        write_atomically(args.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
