"""A table, for the terminal, as Markdown and as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def as_text(self) -> str:
        """Return columns of even width: names to the left, numbers to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        numeric = [all(_is_number(row[column]) for row in self.rows) for column in range(len(self.columns))]
        shown = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(
            [f"\n{self.title}", *([self.note] if self.note else []), *(f"  {line}" for line in shown)]
        )

    def as_markdown(self) -> str:
        """Return a Markdown table under a heading."""
        marks = ["---:" if all(_is_number(row[at]) for row in self.rows) else "---"
                 for at in range(len(self.columns))]  # fmt: skip
        lines = ["| " + " | ".join(line) + " |" for line in (self.columns, tuple(marks), *self.rows)]
        return "\n".join([f"\n### {self.title}\n", *([f"{self.note}\n"] if self.note else []), *lines])

    def as_html(self) -> str:
        """Return an HTML table under a heading."""
        numeric = [all(_is_number(row[at]) for row in self.rows) for at in range(len(self.columns))]
        marks = [' class="number"' if right else "" for right in numeric]
        head = "".join(
            f"<th{mark}>{escape(cell)}</th>" for mark, cell in zip(marks, self.columns, strict=True)
        )
        rows = [
            "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
            for row in self.rows
        ]
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
        note = f"<p>{escape(self.note)}</p>\n" if self.note else ""
        return f'<h3>{escape(self.title)}</h3>\n{note}<div class="wide">{table}</div>'


def ms(value: float) -> str:
    """Return milliseconds with three digits that count."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).replace("e+", "", 1).isdigit()
