"""A model behind HTTP: a picture is posted, a PNG comes back, of the largest face if the engine is for faces.

    python examples/http_server.py sketch.engine --port 8000 --workers 2
    curl --data-binary @drawing.png localhost:8000 --output face.png; curl localhost:8000/health
Only for this machine: what strangers reach needs a server before it that limits and encrypts."""

import argparse
import io
import queue
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

import psp_rt

MAX_BYTES, Image.MAX_IMAGE_PIXELS = 16 << 20, 25_000_000  # Pillow refuses twice as many pixels
WORKERS: "queue.Queue[psp_rt.Translator]" = queue.Queue()  # clones, on the same weights


class Handler(BaseHTTPRequestHandler):
    timeout, served, start, counting = 10, 0, time.monotonic(), threading.Lock()  # seconds for a slow client

    def do_GET(self) -> None:
        seconds = time.monotonic() - self.start
        health = f'{{"served": {self.served}, "requests_per_second": {self.served / seconds:.3f}}}'
        self.answer(*(200, health) if self.path == "/health" else (404, "GET /health, or POST a picture"))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BYTES:
            return self.answer(413 if length else 411, f"expected a Content-Length up to {MAX_BYTES}")
        self.answer(*translated(self.rfile.read(int(length))))

    def answer(self, status: int, content: "str | bytes") -> None:
        with self.counting:
            Handler.served += isinstance(content, bytes)
        self.send_response(status)
        self.send_header("Content-Type", "image/png" if isinstance(content, bytes) else "text/plain")
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else f"{content}\n".encode())


def translated(body: bytes) -> "tuple[int, str | bytes]":
    worker = WORKERS.get()  # decoding waits for its turn, too: its memory is bounded so
    try:
        picture = Image.open(io.BytesIO(body), formats=["PNG", "JPEG", "WEBP"]).copy()
        aligned = worker.manifest.expects_faces and worker.run_faces(picture).results[0][0]
        (aligned or worker.run(picture)).save(png := io.BytesIO(), "PNG")
        return 200, png.getvalue()
    except psp_rt.InputError as error:
        return 422, str(error)
    except psp_rt.PspError as error:
        return 500, str(error)
    except Exception as error:  # decoders raise many kinds on a corrupt file
        return 400, f"the body is no whole PNG, JPEG or WebP picture ({type(error).__name__})"
    finally:
        WORKERS.put(worker)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one. Default: 8000")
    parser.add_argument("--workers", type=int, choices=range(1, 17), default=2, help="Default: 2")
    arguments = parser.parse_args()
    try:
        first = psp_rt.Translator(arguments.engine)
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    except (psp_rt.PspError, OSError, OverflowError) as error:
        raise SystemExit(f"Error: {error}") from None
    for worker in (first, *(first.clone() for _ in range(arguments.workers - 1))):
        WORKERS.put(worker)
    with server, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port} on {first.runs_on}", flush=True)
        server.serve_forever()
    print(f"{Handler.served} pictures, {Handler.served / (time.monotonic() - Handler.start):.2f} a second")
