"""Turn a generator of any format into the public one: ``python -m export.convert FILE.pkl FILE.pt``.

The trainer reads no network pickles; what this writes it does:

    g_ema        the averaged generator, in rosinality's names
    latent_avg   its mean style, [D]; estimated where the file has none
    conv_clamp   bound on the activations; only where the generator has one
"""

import sys
from pathlib import Path
from typing import Any

import click

from export.checkpoints import load as checkpoints
from psp_rt.cli.group import Command
from psp_rt.files import check_apart, check_writable
from trainer import checkpoint

File = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("source", type=File)
@click.argument("output", type=File)
def main(source: Path, output: Path) -> None:
    """Write the generator of SOURCE into OUTPUT, a .pt for `python -m trainer encoder --generator`.

    Reads NVIDIA's stylegan2-ada .pkl and everything else that `python -m export` does. Nothing stored
    in a file is ever executed.
    """
    config = convert(source, output)
    click.echo(f"wrote {output}: StyleGAN2 of {config['size']} pixels, {config['num_styles']} styles")


def convert(source: Path, output: Path) -> dict[str, int]:
    """Write the generator of one file into another; return its sizes."""
    check_apart(output, source)
    check_writable(output)
    model = checkpoints.load(source)
    average = model.latent_avg
    if average is None:
        average = model.generator.mean_style()
    content: dict[str, Any] = {
        "g_ema": model.generator.state_dict(),
        "latent_avg": average.mean(dim=0) if average.ndim == 2 else average,
    }
    config = model.generator.config
    if config.conv_clamp is not None:
        content["conv_clamp"] = config.conv_clamp
    checkpoint.write(output, content)
    return {"size": config.size, "num_styles": config.num_styles}


if __name__ == "__main__":
    sys.exit(main())
