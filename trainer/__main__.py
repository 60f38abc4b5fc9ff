"""Command line of the trainer: ``python -m trainer --help``."""

import os
import sys

from psp_rt.cli.group import require

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0" and "--help" not in sys.argv:
    print("loading PyTorch", file=sys.stderr, flush=True)  # seconds, on a busy machine many

with require("training", install="pip install '.[train]'"):
    from trainer.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m trainer")
