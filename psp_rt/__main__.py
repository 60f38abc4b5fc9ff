"""``python -m psp_rt``: the same as ``psp-rt``."""

from .cli.main import main

main(prog_name="psp-rt")
