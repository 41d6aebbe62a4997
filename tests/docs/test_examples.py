"""Examples that are no programs: the systemd unit and the compose file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from briton.config.loader import load_config
from tests.docs.blocks import ROOT

UNIT = ROOT / "examples" / "systemd" / "briton.service"
COMPOSE = ROOT / "examples" / "compose" / "compose.yaml"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("added", ["", "Restrat=on-failure\n"])
def test_systemd_takes_the_unit(tmp_path: Path, added: str) -> None:
    """With this environment's `briton`, since the unit's is not installed; and a slip would be noticed."""
    text = UNIT.read_text()
    command = "/opt/briton/bin/briton"
    assert f"ExecStart={command} serve " in text
    unit = tmp_path / UNIT.name
    unit.write_text(
        text.replace(command, str(Path(sys.executable).parent / "briton")).replace("[Install]", f"{added}[Install]")
    )
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert bool(complaints) is bool(added), done.stderr


def test_compose_names_what_is_there() -> None:
    """Its target, its config and its volume; compose itself is not installed where this is tested."""
    document = yaml.safe_load(COMPOSE.read_text())
    service = document["services"]["briton"]
    context = (COMPOSE.parent / service["build"]["context"]).resolve()
    assert context == ROOT
    assert f"AS {service['build']['target']}\n" in (context / "Dockerfile").read_text()
    mounts = [mount.split(":") for mount in service["volumes"]]
    config, inside, _ = next(mount for mount in mounts if mount[0].startswith("."))
    assert inside in service["command"]
    assert {mount[0] for mount in mounts if not mount[0].startswith(".")} == set(document["volumes"])
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    assert load_config(COMPOSE.parent / config).briton.drain_timeout_s < grace_s
