"""constraints/locked.txt has one version of everything that pyproject.toml asks for, on every Python, in its range."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKED = Path(__file__).parents[1] / "constraints" / "locked.txt"
EXTRAS = ("", "dev", "mpi", "s3", "gcs", "azure")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_a_version_in_its_range(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux"}
    versions: dict[str, str] = {}
    for line in LOCKED.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        locked = Requirement(line)
        if locked.marker is None or locked.marker.evaluate(environment):
            (pin,) = locked.specifier
            assert versions.setdefault(canonicalize_name(locked.name), pin.version) == pin.version
    asked = [Requirement(line) for line in requires("briton") or ()]
    assert len(asked) > 80
    for requirement in asked:
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        wanted = marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in EXTRAS)
        if wanted and name != "briton":
            assert name in versions, f"make lock: {name} has no version"
            assert versions[name] in requirement.specifier, f"make lock: {name} {versions[name]} is not {requirement}"
