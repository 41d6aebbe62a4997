"""The documentation's blocks and the examples that need a served model, run against one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, programs, run_program
from tests.e2e.serving import Serving

pytestmark = pytest.mark.slow

EXAMPLES = sorted([*(ROOT / "examples" / "clients").glob("*.py"), *(ROOT / "examples" / "clients").glob("*.sh")])


def _addresses(serving: Serving) -> dict[str, str]:
    return {
        "127.0.0.1:8000": f"127.0.0.1:{serving.http_port}",
        "127.0.0.1:50051": f"127.0.0.1:{serving.grpc_port}",
    }


@pytest.mark.parametrize(("where", "language", "text"), programs("serving"), ids=lambda value: str(value)[:40])
def test_runs_beside_a_server(serving: Serving, where: str, language: str, text: str) -> None:
    assert "127.0.0.1" in text, f"{where} asks nobody"
    output = run_program(language, text, _addresses(serving))
    assert output.strip()
    assert '"error"' not in output


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_client_examples(serving: Serving, file: Path) -> None:
    output = run_program("sh" if file.suffix == ".sh" else "python", file.read_text(), _addresses(serving))
    assert output.strip()
    assert '"error"' not in output
