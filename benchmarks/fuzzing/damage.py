"""Damage to bytes, for every kind of file."""

from __future__ import annotations

import random

ODD = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    64,
    255,
    256,
    1 << 16,
    1 << 30,
    (1 << 31) - 1,
    -(1 << 31),
    (1 << 63) - 1,
    -(1 << 63),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, moved, repeated or cut, or with a length that is odd."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if len(found) < 8:
            break
        at, kind = rng.randrange(len(found)), rng.randrange(6)
        if kind == 0:
            found[at] = rng.randrange(256)
        elif kind == 1:  # a number such as a length, in either order
            size, order = rng.choice((2, 4, 8)), rng.choice(("big", "little"))
            number = rng.choice(ODD) % (1 << 8 * size)
            found[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 2:
            length = rng.randint(1, 64)
            found[at:at] = found[rng.randrange(len(found)) :][:length]
        elif kind == 3:
            del found[at : at + rng.randint(1, 64)]
        elif kind == 4 and rng.random() < 0.3:
            del found[at:]
        else:
            found[at] ^= 1 << rng.randrange(8)
    return bytes(found)
