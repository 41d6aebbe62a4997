"""`briton`, but the local executor's step never returns once a file exists: for `traffic_hang`.

    hanging_engine.py FILE serve|engine|gateway ...

The step that finds FILE removes it and hangs, so that an engine started again does not. `serve` starts its engine
through this program.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from briton import cli
from briton.process import serve
from briton.process.supervisor import ChildSpec


def main() -> None:
    """Run the command line that follows FILE."""
    file, arguments = Path(sys.argv[1]), sys.argv[2:]
    if "engine" in arguments:
        _hang_when_told(file)
    elif "serve" in arguments:
        _start_engine_through_this(file)
    cli.main(arguments)


def _hang_when_told(file: Path) -> None:
    from briton.local.model_runner import ModelRunner

    forward = ModelRunner.forward

    def hanging(runner: ModelRunner, inputs: Any) -> Any:
        if file.exists():
            file.unlink()
            threading.Event().wait()
        return forward(runner, inputs)

    setattr(ModelRunner, "forward", hanging)  # noqa: B010


def _start_engine_through_this(file: Path) -> None:
    specs = serve.child_specs

    def hanging_specs(*arguments: Any, **options: Any) -> tuple[ChildSpec, ChildSpec]:
        engine, gateway = specs(*arguments, **options)
        at = engine.command.index("-m")
        command = (*engine.command[:at], __file__, str(file), *engine.command[at + 2 :])
        return replace(engine, command=command), gateway

    serve.child_specs = hanging_specs


if __name__ == "__main__":
    main()
