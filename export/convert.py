"""``python -m export.convert SOURCE OUTPUT``: the older spelling of ``python -m export convert``."""

import sys

from export.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]], prog_name="python -m export")
