"""Command line of the export: ``python -m export --help``."""

from psp_rt.cli.group import require

with require("exporting", install="pip install '.[cpu,export]'"):
    from export.cli import main

if __name__ == "__main__":
    main(prog_name="python -m export")
