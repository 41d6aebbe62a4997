"""`briton serve` with a fake builder and fake children, for tests of its ports and signals.

serve_with_fakes.py DIRECTORY CONFIG HTTP_PORT GRPC_PORT [NAME=BEHAVIOUR,BEHAVIOUR...]
"""

import sys
import time
from pathlib import Path

import briton.process.serve
import briton_engine_builder
from briton import cli
from briton.config.config import Config
from briton.config.environment import Environment
from briton.errors import BuildError
from briton.process.logs import ChildLines, LineWriter
from briton.process.serve import Addresses
from briton.process.supervisor import ChildSpec

directory, config, http_port, grpc_port = Path(sys.argv[1]), *sys.argv[2:5]
behaviours = {name: told.split(",") for name, _, told in (argument.partition("=") for argument in sys.argv[5:])}


def fake_specs(
    config: Config,
    engine_dir: Path,
    addresses: Addresses,
    writer: LineWriter,
    *,
    hostfile: Path | None = None,
    debug: bool = False,
) -> tuple[ChildSpec, ChildSpec]:
    program = str(Path(__file__).with_name("fake_child.py"))

    def fake(name: str) -> ChildSpec:
        command = (sys.executable, program, name, str(directory), "--supervised", *behaviours.get(name, []))
        return ChildSpec(name, command, (directory / f"{name}.ready").exists, ChildLines(writer, name, "text"))

    return fake("engine"), fake("gateway")


def fake_build(config: Config, environment: Environment, *, progress: bool = True) -> Path:
    if "fail" in behaviours.get("builder", []):
        raise BuildError("the checkpoint is cut short")
    if "slow" in behaviours.get("builder", []):
        try:
            (directory / "building").touch()
            time.sleep(60)
        finally:
            (directory / "building").unlink()
    return directory


briton_engine_builder.build_engine = fake_build
briton.process.serve.child_specs = fake_specs
cli.main(["serve", "--config", config, "--port", http_port, "--grpc-port", grpc_port])
