"""A server in a thread of the test's process, on a port of its own."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from psp_rt.serving import Limits, Served, create_app
from psp_rt.serving.served import Hardware


class Running:
    """A server in a thread, which can be stopped and started again at the same port."""

    def __init__(self, engines, **limits):
        self.engines, self.limits, self.port = engines, Limits(**limits), 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        hardware = Hardware(device="cpu", backend="onnxruntime", workers=1, threads=1)
        served = [Served.open(path, hardware, name=name) for name, path in self.engines.items()]
        config = uvicorn.Config(
            create_app(served, self.limits), log_config=None, lifespan="on", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.server.capture_signals = no_signals
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@contextmanager
def no_signals():
    yield
