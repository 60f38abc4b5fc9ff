"""Stop as operators expect: on SIGTERM or SIGINT accept nothing more, finish what is at work, exit with 0."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which would end by the signal that stopped it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Turn signals into a request to stop; a second one stops at once."""
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: at the second signal without waiting."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
