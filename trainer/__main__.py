"""Command line of the trainer: ``python -m trainer --help``."""

from psp_rt.cli.group import require

with require("training", install="pip install '.[train]'"):
    from trainer.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m trainer")
