"""Picture sheets: rows of source, target and result, to look at while training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def largest(columns: list[Tensor]) -> int:
    """Return the height of the largest pictures, which all are shown in."""
    return max(column.shape[2] for column in columns)


def write(path: Path, columns: list[Tensor], *, scale: int = 2, rows: int = 8) -> None:
    """Write columns of pictures [N, 1 or 3, H, W] in [-1, 1] side by side, `rows` cells a column block."""
    side = largest(columns)
    cells = []
    for column in columns:
        x = torch.nn.functional.interpolate(column.float(), size=(side, side), mode="nearest")
        x = x.expand(-1, 3, -1, -1).clamp(-1, 1)
        cells.append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    lines = []
    stacked = np.concatenate(cells, axis=2)  # [N, H, columns * W, 3]
    for start in range(0, len(stacked), rows):
        lines.append(np.concatenate(list(stacked[start : start + rows]), axis=0))
    width = max(line.shape[0] for line in lines)
    lines = [np.pad(line, ((0, width - line.shape[0]), (0, 0), (0, 0))) for line in lines]
    sheet = np.concatenate(lines, axis=1)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(sheet).save(path)
