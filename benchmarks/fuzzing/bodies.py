"""HTTP bodies: requests of the server, damaged; every answer must be below 500."""

from __future__ import annotations

import base64
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzzing.damage import ODD, damaged
from psp_rt import PspError
from psp_rt.serving.bodies import FIELDS
from tests.models import tiny_engine

VALUES: tuple[Any, ...] = (*ODD, None, True, "", "x", "1,2", [], [1], {}, 1e308, "8-", "nan", "\0", "é" * 50)
NAMES = (*FIELDS, "codes", "nonsense")  # every option of the server, and what is none
PATHS = ("/v1/run", "/v1/encode", "/v1/generate")
BOUNDARY = "----------------------------7d3"


class Bodies:
    """Sends requests to a server in this process."""

    name = "HTTP bodies"

    def __init__(self) -> None:
        self._client: Any = None

    def make(self, number: int, folder: Path) -> tuple[str, dict[str, str], bytes]:
        """Return the path, the headers and the body of a number."""
        rng = random.Random(number)
        fields = {name: rng.choice(VALUES) for name in rng.sample(NAMES, rng.randint(0, 3))}
        picture, kind = _picture(), rng.randrange(3)
        if kind == 0:
            content = {"image": base64.b64encode(picture).decode(), **fields}
            body, header = json.dumps(content).encode(), "application/json"
        elif kind == 1:
            parts = [(f'form-data; name="{name}"', str(value).encode()) for name, value in fields.items()]
            parts.append(('form-data; name="image"; filename="a.png"', picture))
            body = b"".join(
                f"--{BOUNDARY}\r\nContent-Disposition: {what}\r\n\r\n".encode() + value + b"\r\n"
                for what, value in parts
            )
            body, header = body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"
        else:
            body, header = picture, rng.choice(("image/png", "application/safetensors", ""))
        if rng.random() < 0.6:
            body = damaged(body, rng)
        headers = {"content-type": header, "accept": rng.choice(("*/*", "application/json", "image/*"))}
        return rng.choice(PATHS), headers, body

    def use(self, made: Any) -> None:
        """Send a request."""
        path, headers, body = made
        response = self._opened().post(path, headers=headers, content=body)
        if response.status_code >= 500:
            raise AssertionError(f"{response.status_code}: {response.text}")
        if response.status_code >= 400:
            raise PspError(response.text)

    def _opened(self) -> Any:
        """Return a client of a server, opened in the process that attacks it."""
        if self._client is None:
            from starlette.testclient import TestClient

            from psp_rt.serving import Served, create_app
            from psp_rt.serving.served import Hardware

            path = tiny_engine.build(Path(tempfile.mkdtemp()) / "tiny.engine")
            served = Served.open(path, Hardware(device="cpu", workers=1, threads=1))
            self._client = TestClient(create_app([served]), raise_server_exceptions=False).__enter__()
        return self._client


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((tiny_engine.HEIGHT, tiny_engine.WIDTH, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
