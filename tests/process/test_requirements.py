"""Each part has all that it imports among its requirements, and no more; together they are the package's."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from briton.process.requirements import PARTS, main, requirements_of

ROOT = Path(__file__).parents[2]
FOLDERS = {"briton": "", "briton_server": "server", "briton_engine_builder": "engine_builder"}
# What a part runs, every module of it; and which packages it must do without.
ROOMS = {
    "client": ["briton.v1"],
    "gateway": ["briton_server", "briton.text", "briton.config", "briton.v1", "briton.cli", "briton.process.cpu"],
    "engine": [
        *("briton.cli", "briton.config", "briton.engine", "briton.guidance", "briton.local", "briton.model"),
        *("briton.process", "briton.ranks", "briton.rpc", "briton.text", "briton.trtllm", "briton.v1"),
    ],
    "builder": ["briton_engine_builder", "briton.cli", "briton.config", "briton.model", "briton.trtllm.plan"],
}
WITHOUT = {
    "client": {"openvino", "numpy", "fastapi", "pydantic", "transformers"},
    "gateway": {"openvino", "llguidance", "outlines_core", "gguf"},
    "engine": {"fastapi", "starlette", "uvicorn", "gguf"},
    "builder": {"openvino", "fastapi", "llguidance"},
}
# Imports every module of a list where only some distributions are there.
PROGRAM = """
import importlib, importlib.metadata, json, re, sys
allowed, todo = set(), json.loads(sys.argv[1])
while todo:
    name = re.match(r"[\\w.-]+", todo.pop())[0].lower().replace("_", "-")
    if name not in allowed:
        allowed.add(name)
        try:
            lines = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [line for line in lines if "extra ==" not in line]
owners = importlib.metadata.packages_distributions()
class Absent:
    def find_spec(self, name, path=None, target=None):
        owner = owners.get(name.partition(".")[0], [])
        if owner and not {each.lower().replace("_", "-") for each in owner} & (allowed | {"briton"}):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for module in json.loads(sys.argv[2]):
    importlib.import_module(module)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def files_of(room: str) -> list[Path]:
    """Every file of a package, or the one of a module."""
    path = ROOT / FOLDERS[room.partition(".")[0]] / Path(*room.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def modules_of(room: str) -> list[str]:
    """The names of its modules."""
    root = ROOT / FOLDERS[room.partition(".")[0]]
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files_of(room))
    return [name.removesuffix(".__init__") for name in names]


needs_names = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 knows the modules of few distributions (packages_distributions)"
)


@needs_names
@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_with_its_own_requirements_alone(part: str) -> None:
    modules = [module for room in ROOMS[part] for module in modules_of(room)]
    command = [sys.executable, "-c", PROGRAM, json.dumps(requirements_of(part)), json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not WITHOUT[part] & set(json.loads(done.stdout))


@needs_names
@pytest.mark.parametrize("part", PARTS)
def test_a_part_requires_nothing_that_it_does_not_import(part: str) -> None:
    owned: dict[str, set[str]] = {}
    for module, owners in packages_distributions().items():
        for owner in owners:
            owned.setdefault(owner.lower().replace("_", "-"), set()).add(module)
    rooms = [*ROOMS[part], "briton.text"] if part == "builder" else ROOMS[part]  # which the builder imports
    texts = [file.read_text(encoding="utf-8") for room in rooms for file in files_of(room)]
    imported = {name for text in texts for name in re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)}
    imported |= {name for text in texts for name in re.findall(r'import_module\("(\w+)', text)}
    for requirement in requirements_of(part):
        name = re.split(r"[^\w-]", requirement)[0]
        assert owned[name] & imported, f"{part} does not import {name}"


def test_the_parts_are_the_package() -> None:
    """And a range is written alike wherever it stands."""
    everything = {line for line in requires("briton") or () if "extra ==" not in line}
    assert {line for part in PARTS for line in requirements_of(part)} == everything


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"[\w-]+", line)[0] for line in lines] == ["grpcio", "protobuf"]  # type: ignore[index]
    assert main(["clients"]) == 2
    assert "must be one of client, gateway, engine, builder, not 'clients'" in capsys.readouterr().err
    assert main([]) == 2
    assert "one part is needed" in capsys.readouterr().err


def test_it_imports_the_standard_library_alone() -> None:
    tree = ast.parse((ROOT / "briton" / "process" / "requirements.py").read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in names} <= sys.stdlib_module_names
