"""The fenced blocks of README and docs, and what the comment above each says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = ("sh", "python")  # what can be run, and has to say whether it is
_COMMENT = re.compile(r"<!-- (?P<text>.*?) -->\s*$", re.DOTALL)
_PREFIX = "not run: "
_CURL = 'curl() { command curl --silent --show-error --fail-with-body --max-time 120 "$@"; }\n'


@dataclass(frozen=True)
class Block:
    """One fenced block. `comment` is the HTML comment just above it, or empty."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def is_program(self) -> bool:
        """Whether it can be run."""
        return self.language in PROGRAMS

    @property
    def runs(self) -> str | None:
        """ "alone" or "serving" (a served example); None: not run."""
        return self.comment.removeprefix("run: ") if self.comment in ("run: alone", "run: serving") else None

    @property
    def reason(self) -> str:
        """Why it is not run; empty when it is, or when it does not say."""
        return self.comment.removeprefix(_PREFIX).strip() if self.comment.startswith(_PREFIX) else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The page's blocks, from the top; an indented one has the language "(indented)"."""
    comment = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = _COMMENT.search(token.content)
            comment = " ".join(found["text"].split()) if found else ""
        elif token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "(indented)"
            line = (token.map or [0])[0] + 1
            yield Block(str(page.relative_to(ROOT)), line, language, token.content, comment)
            comment = ""
        elif token.nesting >= 0:
            comment = ""


def all_blocks() -> list[Block]:
    """Those of every page."""
    return [block for page in PAGES for block in blocks_of(page)]


def programs(runs: str) -> list[tuple[str, str, str]]:
    """(where, language, text) of what is run so. The Python blocks of a page are one program, as they are to a reader;
    each shell block is one."""
    result = [(str(block), block.language, block.text) for block in all_blocks() if block.runs == runs]
    shell = [program for program in result if program[1] == "sh"]
    python: dict[str, str] = {}
    for where, language, text in result:
        if language == "python":
            page = where.partition(":")[0]
            python[page] = python.get(page, "") + text
    return [*shell, *((page, "python", text) for page, text in python.items())]


def run_program(language: str, text: str, replaced: Mapping[str, str] | None = None) -> str:
    """Run it in the repository's root as a reader would, `briton` being this environment's; its standard output.

    `replaced` are the addresses of another server. Fails with its output when it fails; for curl an HTTP error is one.
    """
    for old, new in (replaced or {}).items():
        text = text.replace(old, new)
    command = ["bash", "-euo", "pipefail", "-c", _CURL + text] if language == "sh" else [sys.executable, "-c", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
