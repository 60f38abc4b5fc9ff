"""``psp-rt serve``: engines behind HTTP, and a page that draws."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..errors import OutputError
from ..hardware.choose import BackendName, Device, Precision
from .group import require
from .options import hardware_options

INSTALL_SERVE = "pip install 'psp_rt[serve]'"


@click.command("serve")
@click.argument("engines", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ENGINE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Of each engine. Default: one for two cores.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Requests that may wait for an engine.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Time limit of a request."
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds to finish work when stopped.",
)
@click.option(
    "--max-bytes", type=click.IntRange(1024), default=32 << 20, show_default=True, help="Of a request."
)
@click.option(
    "--max-pixels", type=click.IntRange(1024), default=50_000_000, show_default=True, help="Of a picture."
)
@click.option(
    "--rate", type=click.FloatRange(0.01), help="Requests a second of one address. Default: no limit."
)
@click.option("--token", envvar="PSP_RT_TOKEN", help="Clients must send it as a bearer token.")
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="Pages elsewhere that may ask (CORS)."
)
@hardware_options
def serve_command(
    *,
    engines: tuple[Path, ...],
    host: str,
    port: int,
    workers: int | None,
    queue: int,
    seconds: float,
    grace: float,
    max_bytes: int,
    max_pixels: int,
    rate: float | None,
    token: str | None,
    origins: tuple[str, ...],
    device: Device,
    backend: BackendName,
    precision: Precision,
    threads: int | None,
) -> None:
    """Serve ENGINEs over HTTP, with a page that draws at /."""
    with require("serving", install=INSTALL_SERVE):
        import uvicorn

        from ..serving import Limits, Served, create_app
        from ..serving.served import Hardware, names_of
        from ..serving.stopping import GracefulServer

    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("psp_rt.serving").setLevel(logging.INFO)
    limits = Limits(
        body_bytes=max_bytes, pixels=max_pixels, seconds=seconds, queue=queue, rate=rate, token=token
    )
    hardware = Hardware(
        device=device,
        backend=backend,
        precision=precision,
        threads=threads,
        workers=workers,
    )
    with _bound(host, port) as listening:
        served = []
        for path, name in zip(engines, names_of(list(engines)), strict=True):
            served.append(Served.open(path, hardware, name=name))
            click.echo(f"{name}: {path} runs on {served[-1].runs_on}", err=True)
        address = f"[{host}]" if ":" in host else host
        click.echo(f"http://{address}:{listening.getsockname()[1]} draws; Ctrl-C stops", err=True)
        config = uvicorn.Config(
            create_app(served, limits, allow_origins=origins),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        GracefulServer(config).run(sockets=[listening])


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port first: nobody should wait for engines only to hear that it is taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise OutputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port, or 0"
        ) from None
    with listening:
        yield listening
