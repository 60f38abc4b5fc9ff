"""Write the tables of README and its pages from the committed results: ``make readme-tables``.

Each file of benchmarks/results has a place in one of them between two comments that bear its name::

    <!-- cpu-1024: written by `make readme-tables` -->
    <!-- /cpu-1024 -->

The file's format decides what is written there; see `benchmarks.report.readme`. tests/test_readme.py checks
that the pages are up to date.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report.readme import BLOCKS
from psp_rt import InputError, PspError

ROOT = Path(__file__).parents[1]

PAGES = ("README.md", "trainer/README.md", "benchmarks/README.md")
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"(?P<start><!-- (?P<name>[\w.-]+): written by `make readme-tables`[^\n]*-->\n).*?"
    r"(?P<end><!-- /(?P=name) -->)",
    re.DOTALL,
)


def main() -> int:
    """Rewrite the pages, and print which results have no place in them."""
    pages = [ROOT / page for page in PAGES if (ROOT / page).exists()]
    try:
        check_unique("".join(page.read_text() for page in pages))
        for page in pages:
            page.write_text(updated(page.read_text(), RESULTS, folder=page.parent))
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for name in without_place("".join(page.read_text() for page in pages), RESULTS):
        print(f"benchmarks/results/{name}.json has no place. To give it one, write in {' or '.join(PAGES)}:")
        print(f"<!-- {name}: written by `make readme-tables` -->\n<!-- /{name} -->")
    return 0


def places(text: str) -> list[str]:
    """Return the names of the results that have a place in a text."""
    return [match["name"] for match in PLACE.finditer(text)]


def without_place(text: str, results: Path = RESULTS) -> list[str]:
    """Return the names of results that a text could show but has no place for."""
    shown = set(places(text))
    known = (path for path in sorted(results.glob("*.json")) if path.stem not in shown)
    return [path.stem for path in known if json.loads(path.read_text()).get("format") in BLOCKS]


def check_unique(text: str) -> None:
    """Raise an error if a result has two places, because one of them would be forgotten."""
    names = places(text)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"there is more than one place for {', '.join(sorted(twice))}; leave one")


def updated(text: str, results: Path = RESULTS, *, folder: Path = ROOT) -> str:
    """Return the text of a page with every table generated again.

    Args:
        text: The page.
        results: The folder of results.
        folder: The folder of the page, for its links.

    Raises:
        InputError: The file of a place is missing or has an unknown format, or a place occurs twice.
    """
    check_unique(text)

    def filled(match: re.Match[str]) -> str:
        return match["start"] + block(results / f"{match['name']}.json", folder=folder) + match["end"]

    return PLACE.sub(filled, text)


def block(path: Path, *, folder: Path = ROOT) -> str:
    """Return the block that a page in a folder shows for a result file."""
    shown = f"benchmarks/results/{path.name}"
    link = os.path.relpath(ROOT / shown, folder)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{shown} cannot be read: {error}; a page has a place for it") from None
    known = content.get("format") if isinstance(content, dict) else None
    if known not in BLOCKS:
        raise InputError(f"{shown} has the format {known!r}; expected one of {', '.join(BLOCKS)}")
    made = (
        f"Made by `{content['provenance']['command']}`, then `make readme-tables`; the whole result is in "
        f"[{shown}]({link})."
    )
    return "\n".join([*BLOCKS[known](content), "", made]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
