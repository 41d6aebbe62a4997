"""`python -m tools.docs [--check]`: write the generated parts of the documentation, or say which differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tools.docs import (
    architecture_diagram,
    benchmark_plot,
    command_reference,
    config_reference,
    grpc_reference,
    limits_reference,
    make_reference,
    metrics_reference,
    openai_reference,
    rooms_diagram,
)
from tools.docs.sections import with_sections

ROOT = Path(__file__).resolve().parents[2]


def generated() -> Iterator[tuple[Path, str]]:
    """Every generated file, relative to the repository, and what belongs in it."""
    yield Path("docs/config.schema.json"), config_reference.schema_text()
    yield Path("docs/images/architecture.svg"), architecture_diagram.svg()
    yield Path("docs/images/rooms.svg"), rooms_diagram.svg(ROOT)
    yield Path("docs/images/benchmarks.svg"), benchmark_plot.svg(ROOT)
    for page, sections in (
        ("configuration", config_reference.sections()),
        ("openai-api", openai_reference.sections()),
        ("grpc", grpc_reference.sections(ROOT)),
        ("operations", {**metrics_reference.sections(), **limits_reference.sections()}),
        ("commands", command_reference.sections()),
        ("development", make_reference.sections(ROOT)),
        ("benchmarks", benchmark_plot.sections(ROOT)),
    ):
        path = Path(f"docs/{page}.md")
        yield path, with_sections((ROOT / path).read_text(encoding="utf-8"), sections, path)


def main() -> int:
    """Write, or with --check compare; the exit code is 1 when a committed file differs."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        raise SystemExit("usage: python -m tools.docs [--check]")
    differing = []
    for path, text in generated():
        file = ROOT / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            differing.append(str(path))
            if not check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    if check and differing:
        print(f"not current: {', '.join(differing)}; run `make reference`", file=sys.stderr)
        return 1
    print("documentation: " + ("current" if not differing else f"written: {', '.join(differing)}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
