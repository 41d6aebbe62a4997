"""A machine with the library and GPUs, for builds: `site/` is what a child process finds of it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from briton.process import executor_choice as serving
from briton.trtllm import machine as machine_module
from briton.trtllm.machine import Machine
from briton_engine_builder.trtllm import builder

SITE = Path(__file__).with_name("site")
TABLE_FILE = Path(__file__).parents[2] / "trtllm" / "tensorrt_llm_builder_api.json"


@dataclass
class StandIn:
    """The machine. Faults: build, calibration, save, killed, hang, teardown."""

    directory: Path
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.set()
        path = [str(self.directory), str(SITE), *(entry for entry in sys.path if entry)]
        self.monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        # The python3 of mpirun's first line is this one: another would find this one's standard library in its path.
        here = Path(sys.executable).parent
        self.monkeypatch.setenv("PATH", f"{SITE}{os.pathsep}{here}", prepend=os.pathsep)
        self.monkeypatch.setenv("STAND_IN", str(self.directory / "state.json"))

    def set(
        self,
        *,
        version: str = "1.2.1",
        installed: str | None = None,
        capability: tuple[int, int] = (9, 0),
        seen: tuple[int, int] | None = None,
        gpus: int = 1,
        devices: int | None = None,
        **state: Any,
    ) -> Machine:
        """What is there: for Briton's process `version`, `capability`, `gpus`; for its child `installed`, `seen`,
        `devices` where they are another."""
        for old in self.directory.glob("*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        distribution = self.directory / f"tensorrt_llm-{installed or version}.dist-info"
        distribution.mkdir()
        (distribution / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {distribution.stem[13:]}\n"
        )
        content = {
            "table": str(TABLE_FILE),
            "calls": str(self.directory / "calls"),
            "capability": seen or capability,
            "devices": gpus if devices is None else devices,
            **state,
        }
        (self.directory / "state.json").write_text(json.dumps(content), encoding="utf-8")
        architecture = f"sm_{capability[0]}{capability[1]}"
        here = Machine(version, ("NVIDIA GPU",) * gpus, None, (architecture,) * gpus)
        for module in (machine_module, serving, builder):
            self.monkeypatch.setattr(module, "this_machine", lambda: here)
        return here

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the library and mpirun were asked, in order."""
        file = self.directory / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
