"""Generated sections of pages that people write: between two comments, which neither GitHub nor mkdocs shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def with_sections(text: str, sections: Mapping[str, str], path: Path) -> str:
    """`text` with each marked section's content replaced. Raises ValueError for a section that only one side knows."""
    marked = [match["name"] for match in _SECTION.finditer(text)]
    if sorted(marked) != sorted(sections):
        raise ValueError(f"{path} marks the generated sections {sorted(marked)}, the code writes {sorted(sections)}")
    return _SECTION.sub(lambda match: f"{match[1]}\n{sections[match['name']].strip()}\n\n{match[3]}", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines = [_row(header), "|" + "---|" * len(header), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", r"\|").split()) for cell in cells) + " |"
