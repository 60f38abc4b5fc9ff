"""The recordings of one lane that were used last, of each kind.

It has not run on a GPU yet: the tests drive it with stand-ins for cuda-bindings and TensorRT.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any, TypeVar

from ...cuda.device import OutOfMemory
from .graph import Recording

BATCH_SIZES_KEPT = 4  # of each network, and of translations
Recorded = TypeVar("Recorded", bound=Recording)


class Recordings:
    """Keeps a few recordings of each kind, since making one takes far longer than running it."""

    def __init__(self, *, make_room: Callable[[], bool] = lambda: False) -> None:
        """Begin without any.

        Args:
            make_room: Called where memory is short; lets go of some elsewhere, and says whether it could.
        """
        self._make_room = make_room
        self._kept: defaultdict[str, OrderedDict[Hashable, Any]] = defaultdict(OrderedDict)

    def __getitem__(self, kind: str) -> OrderedDict[Hashable, Any]:
        return self._kept[kind]

    def get(
        self, kind: str, key: Hashable, make: Callable[[], Recorded], *, beside: Recording | None = None
    ) -> Recorded:
        """Return the recording for a size; the ones unused for longest make room for it.

        Args:
            kind: Each has room of its own.
            key: The size.
            make: Makes it where it is not there.
            beside: Of another kind, and in use: it makes no room.

        Raises:
            BackendError: It cannot be made.
        """
        kept: OrderedDict[Hashable, Recorded] = self._kept[kind]
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        while len(kept) >= BATCH_SIZES_KEPT:
            kept.popitem(last=False)[1].close()
        try:
            kept[key] = make()
        except OutOfMemory:
            if not self._forget_all_but(beside) | self._make_room():
                raise
            kept[key] = make()
        return kept[key]

    def close(self) -> None:
        """Release all of them, also where one release fails."""
        with ExitStack() as releases:
            for kept in self._kept.values():
                for recording in kept.values():
                    releases.callback(recording.close)
                kept.clear()

    def _forget_all_but(self, used: Recording | None) -> bool:
        """Release the recordings that are not in use, and return whether there were any."""
        unused = [
            (kept, key)
            for kept in self._kept.values()
            for key, recording in kept.items()
            if recording is not used
        ]
        for kept, key in unused:
            kept.pop(key).close()
        return bool(unused)
