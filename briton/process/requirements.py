"""What one part of Briton needs where it is installed alone: client, gateway, engine or builder.

    pip install --no-deps briton && python -m briton.process.requirements client | xargs -d '\\n' pip install

Plain `pip install briton` installs everything; an extra can add to that, and cannot take away. Nothing but the standard
library is imported here.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

PARTS = ("client", "gateway", "engine", "builder")

_OF_AN_EXTRA = re.compile(r"""(?P<requirement>[^;]+?)\s*;\s*extra\s*==\s*['"](?P<extra>[^'"]+)['"]""")


def requirements_of(part: str) -> tuple[str, ...]:
    """The requirements of one of PARTS, as pip reads them. ValueError for another name, PackageNotFoundError where the
    package is not installed."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    matches = (_OF_AN_EXTRA.fullmatch(line) for line in requires("briton") or ())
    return tuple(match["requirement"] for match in matches if match and match["extra"] == part)


def main(arguments: list[str]) -> int:
    """Print one requirement a line; the exit code."""
    try:
        (part,) = arguments
        print(*requirements_of(part), sep="\n")
    except PackageNotFoundError:
        print("error: the package briton is not installed: pip install --no-deps briton", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error if len(arguments) == 1 else 'one part is needed: ' + ', '.join(PARTS)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
