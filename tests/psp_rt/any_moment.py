"""End, fork or close at random moments while threads are at work; run by test_any_moment.

    python -m tests.psp_rt.any_moment end|fork|close ENGINE BACKEND SEED...

Each moment is a process of its own, forked off before a runtime is loaded. Prints a line for each seed whose
process ended otherwise than it should.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from psp_rt import PspError, Translator, faces

SECONDS = 90  # for one moment
LEFT = 5  # the exit status of a process that ended as it should


def work(translator: Translator, finder: bool = False) -> None:
    """Keep daemon threads in native code for good."""
    spec = translator.manifest.input
    assert spec is not None
    picture = np.full((spec.height, spec.width, 3), 200, np.uint8)

    def run_for_good(own: Translator) -> None:
        with suppress(PspError):
            while True:
                own.run(np.stack([picture] * 3))

    def find_for_good() -> None:
        with suppress(PspError):
            found = faces.MeshFinder(backend=translator.backend)
            while True:
                found.find(np.full((64, 64, 3), 128, np.uint8))

    def open_for_good(path: Path) -> None:
        with suppress(PspError):
            while True:
                Translator(path, backend=translator.backend, device="cpu", threads=2).run(picture)

    targets: list[tuple[Callable[..., None], object]] = [(run_for_good, translator) for _ in range(2)]
    targets.append((run_for_good, translator.clone()))
    targets.append((open_for_good, Path(sys.argv[2])))
    for target, argument in targets:
        threading.Thread(target=target, args=(argument,), daemon=True).start()
    if finder:
        threading.Thread(target=find_for_good, daemon=True).start()


def end(translator: Translator, rng: random.Random) -> None:
    """Leave by sys.exit, Ctrl-C, or a handler of SIGTERM that closes."""
    how = rng.choice(("exit", "SIGINT", "SIGTERM"))
    work(translator, finder=rng.random() < 0.3)
    if how == "exit":
        time.sleep(rng.uniform(0, 0.1))
        sys.exit(LEFT)

    def closing(*_: object) -> None:
        translator.close()
        sys.exit(LEFT)

    def leave(*_: object) -> None:
        sys.exit(LEFT)

    signal.signal(signal.SIGTERM, closing)
    signal.signal(signal.SIGINT, leave)
    timer = threading.Timer(rng.uniform(0, 0.1), os.kill, (os.getpid(), getattr(signal, how)))
    timer.daemon = True
    timer.start()
    own = Translator(sys.argv[2], backend=translator.backend, device="cpu")
    with suppress(PspError):
        while True:  # the signal interrupts a call of this thread, too
            (own if how == "SIGINT" else translator).run(np.zeros((16, 12, 3), np.uint8))
    sys.exit(LEFT)


def fork(translator: Translator, rng: random.Random) -> None:
    """Fork from any thread while others work; the child opens an engine, finds faces and ends."""
    work(translator, finder=rng.random() < 0.3)
    statuses: list[int] = []
    in_thread = rng.random() < 0.5

    def fork_now() -> None:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS - 30)
            with suppress(PspError):
                translator.run(np.zeros((16, 12, 3), np.uint8))
                os._exit(1)
            # OpenVINO cannot be used after a fork: without a name, it is not chosen.
            backend = "auto" if translator.backend == "openvino" else "onnxruntime"
            with Translator(sys.argv[2], device="cpu", backend=backend, threads=2) as own:
                own.run(np.zeros((16, 12, 3), np.uint8))
            if rng.random() < 0.3:
                faces.MeshFinder(backend=None if backend == "auto" else backend).find(
                    np.full((64, 64, 3), 128, np.uint8)
                )
            if threading.current_thread() is threading.main_thread() and not in_thread:
                sys.exit(LEFT)  # an end with destructors
            os._exit(LEFT)  # an exception would only end the thread
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    time.sleep(rng.uniform(0, 0.1))
    if in_thread:
        forking = threading.Thread(target=fork_now)
        forking.start()
        forking.join()
    else:
        fork_now()
    if statuses != [LEFT]:
        print(f"the fork ended with {statuses}", flush=True)
    sys.exit(LEFT)


def close(translator: Translator, rng: random.Random) -> None:
    """Close from another thread and from a signal handler, twice."""
    work(translator)
    closers = [threading.Timer(rng.uniform(0, 0.1), translator.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    signal.signal(signal.SIGUSR1, lambda *_: translator.close())
    threading.Timer(rng.uniform(0, 0.1), os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with suppress(PspError):
        while True:
            translator.run(np.zeros((16, 12, 3), np.uint8))
    for closer in closers:
        closer.join()
    sys.exit(LEFT)


def moment(what: Callable[[Translator, random.Random], None], seed: int) -> str:
    """Return how a process ended that should not have."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        what(Translator(sys.argv[2], backend=sys.argv[3], device="cpu", threads=2), random.Random(seed))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if status == LEFT else f"seed {seed}: ended with {status}"


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    begun = {"end": end, "fork": fork, "close": close}[sys.argv[1]]
    for seed in sys.argv[4:]:
        if found := moment(begun, int(seed)):
            print(found, flush=True)
