"""The plans of the public examples' decoder configs, as JSON files: `python -m tests.trtllm.golden_plans` writes them.

Shapes come from the built-in table, so that neither network nor GPU has a say.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from briton.config.loader import load_config
from briton.model.shapes import known_shapes
from briton_engine_builder.explain import explain_shapes

DATA = Path(__file__).parents[1] / "config" / "data"
GOLDENS = Path(__file__).with_name("golden_plans")
NAMES = sorted(file.stem for file in DATA.glob("*.yaml") if not file.stem.startswith("BEI"))


def plan(name: str) -> dict[str, Any]:
    """The document of one config, as `briton config explain --json --executor trtllm --offline` prints it."""
    here = Path.cwd()
    os.chdir(DATA)  # the launch command names the config as it was given
    try:
        config = load_config(Path(f"{name}.yaml"))
    finally:
        os.chdir(here)
    shapes = known_shapes(config.checkpoint.repo)
    assert shapes is not None, config.checkpoint.repo
    document: dict[str, Any] = json.loads(
        json.dumps(explain_shapes(config, shapes, "trtllm", "a golden plan").document)
    )
    return document


def golden(name: str) -> dict[str, Any]:
    """The committed plan."""
    document: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def main() -> None:
    """Write all of them; `git diff` then shows what to review."""
    GOLDENS.mkdir(exist_ok=True)
    for name in NAMES:
        (GOLDENS / f"{name}.json").write_text(json.dumps(plan(name), indent=2) + "\n", encoding="utf-8")
    print(f"{len(NAMES)} plans in {GOLDENS}")


if __name__ == "__main__":
    main()
