"""Write README's tables from the committed results: ``make readme-tables``.

Each file of benchmarks/results has a place in README between two comments that bear its name::

    <!-- cpu-1024: written by `make readme-tables` -->
    <!-- /cpu-1024 -->

What stands there follows from the file's format; see `benchmarks.readme_blocks`. tests/test_readme.py holds
that README agrees.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.readme_blocks import BLOCKS
from psp_rt import InputError, PspError

ROOT = Path(__file__).parents[1]

RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(
    r"(?P<start><!-- (?P<name>[\w.-]+): written by `make readme-tables`[^\n]*-->\n).*?"
    r"(?P<end><!-- /(?P=name) -->)",
    re.DOTALL,
)


def main() -> int:
    """Rewrite README; say which results have no place in it."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    try:
        readme.write_text(updated(text, RESULTS))
    except PspError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for name in without_place(text, RESULTS):
        print(f"benchmarks/results/{name}.json has no place in README. To give it one, write there:")
        print(f"<!-- {name}: written by `make readme-tables` -->\n<!-- /{name} -->")
    return 0


def places(text: str) -> list[str]:
    """Return the names of the results that have a place in README."""
    return [match["name"] for match in PLACE.finditer(text)]


def without_place(text: str, results: Path = RESULTS) -> list[str]:
    """Return the names of results that README could show and has no place for."""
    shown = set(places(text))
    known = (path for path in sorted(results.glob("*.json")) if path.stem not in shown)
    return [path.stem for path in known if json.loads(path.read_text()).get("format") in BLOCKS]


def updated(text: str, results: Path = RESULTS) -> str:
    """Return README's text with every table made anew.

    Raises:
        InputError: A place is for a file that is not there or of no known format, or stands twice.
    """
    names = places(text)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"README.md has more than one place for {', '.join(sorted(twice))}; leave one")
    return PLACE.sub(
        lambda match: match["start"] + block(results / f"{match['name']}.json") + match["end"], text
    )


def block(path: Path) -> str:
    """Return what README says of a result file."""
    shown = f"benchmarks/results/{path.name}"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{shown} cannot be read: {error}; README.md has a place for it") from None
    known = content.get("format") if isinstance(content, dict) else None
    if known not in BLOCKS:
        raise InputError(f"{shown} has the format {known!r}; expected one of {', '.join(BLOCKS)}")
    made = (
        f"Made by `{content['provenance']['command']}`, then `make readme-tables`; the whole result is in "
        f"[{shown}]({shown})."
    )
    return "\n".join([*BLOCKS[known](content), "", made]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
