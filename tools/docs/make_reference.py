"""The table of docs/development.md: what `make help` says, from the Makefile."""

from __future__ import annotations

import re
from pathlib import Path

from tools.docs.sections import table

_TARGET = re.compile(r"^(?P<name>[a-z][a-z0-9-]*):.*?## (?P<text>.+)$", re.MULTILINE)


def sections(root: Path) -> dict[str, str]:
    """Every target that `make help` lists, in its order."""
    targets = _TARGET.finditer((root / "Makefile").read_text(encoding="utf-8"))
    rows = [(f"`make {target['name']}`", target["text"]) for target in targets]
    return {"make": table(("command", "what it does"), rows)}
