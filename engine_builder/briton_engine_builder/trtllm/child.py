"""The child process that builds: `python -m briton_engine_builder.trtllm.child JOB`. It alone imports the library.

It says what it is doing in lines that begin with PHASE, and what went wrong in one line that begins with ERROR_PREFIX;
whatever else comes out of it is the library's. The engine is in OUTPUT, beside the job's file, once SAVED is there.
Written after release 1.2.1's public code. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from briton.process.child_process import ERROR_PREFIX, end_with_supervisor
from briton.trtllm.build_plan import BUILDER_MODULE
from briton.trtllm.library_objects import make
from briton.trtllm.machine import LIBRARY
from briton_engine_builder.trtllm.job import OUTPUT, PHASE, SAVED, WORKSPACE, BuildJob, load_job
from briton_engine_builder.trtllm.model_optimizer import quantize

_MAX_ERROR = 500  # characters of the library's message: it likes to add stack traces


def main(arguments: list[str]) -> int:
    """Build the job of the file that is named. The exit code."""
    end_with_supervisor()
    file = Path(arguments[0]).absolute()
    try:
        build(load_job(file), file.parent)
    except Exception as error:
        traceback.print_exc()
        print(f"{ERROR_PREFIX}{_one_line(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


def build(job: BuildJob, directory: Path) -> None:
    """Put the engine into DIRECTORY/output. Raises whatever the library raises, and RuntimeError for another machine
    than the job is for."""
    phases = _Phases(4 if job.model_optimizer_recipe else 3)
    workspace = directory / WORKSPACE
    workspace.mkdir(exist_ok=True)
    with phases(f"loading {LIBRARY}"):
        _check_machine(job)
        llm_class = importlib.import_module(BUILDER_MODULE).LLM
        arguments = _llm_arguments(job)
    model = Path(job.checkpoint)
    if job.model_optimizer_recipe is not None:
        with phases(f"quantizing with {job.model_optimizer_recipe}{_samples(job)}"):
            arguments["tokenizer"] = str(model)  # what is exported has none
            model = quantize(job, arguments.pop("calib_config"), workspace / "quantized")
            del arguments["quant_config"]  # the exported checkpoint says it
    calibrates = f", quantizing{_samples(job)}" if "calib_config" in arguments else ""
    with phases(f"loading the checkpoint{calibrates}, building for {job.gpu_architecture} x {job.world_size}"):
        llm = llm_class(model=str(model), workspace=str(workspace), **arguments)
    with phases("saving"):
        llm.save(str(directory / OUTPUT))
    (directory / SAVED).touch()
    llm.shutdown()  # the constructor has started an executor, too


def _llm_arguments(job: BuildJob) -> dict[str, Any]:
    """Keywords of LLM; those that the job leaves out stay the library's defaults."""
    calls: Mapping[str, Any] = {
        "build_config": job.build_config,
        "quant_config": job.quant_config,
        "calib_config": job.calib_config,
        "speculative_config": job.speculative_config,
        "peft_cache_config": job.peft_cache_config,
    }
    made = {name: make(call) for name, call in calls.items() if call is not None}
    return {**job.llm_arguments, **made}


def _check_machine(job: BuildJob) -> None:
    try:
        installed = version(LIBRARY)
    except PackageNotFoundError:
        raise RuntimeError(f"{LIBRARY} is not installed") from None
    if installed != job.library_version:
        raise RuntimeError(f"{LIBRARY} {installed} is installed; the engine is to be built by {job.library_version}")
    cuda = importlib.import_module("torch").cuda
    if not cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    if cuda.device_count() < job.world_size:
        raise RuntimeError(f"torch sees {cuda.device_count()} GPUs; the engine is for {job.world_size}")
    major, minor = cuda.get_device_capability()
    if f"sm_{major}{minor}" != job.gpu_architecture:
        raise RuntimeError(f"this GPU is sm_{major}{minor}; the engine is to be built for {job.gpu_architecture}")


def _samples(job: BuildJob) -> str:
    if job.calib_config is None:
        return ""
    return f" on {job.calib_config['calib_batches']} samples of {job.calib_config['calib_dataset']}"


class _Phases:
    """Says which of how many phases begins, and how long it took."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._number += 1
        number, started = f"{self._number}/{self._total}", time.monotonic()
        print(f"{PHASE}{number}: {what}", flush=True)
        yield
        print(f"{PHASE}{number}: done in {time.monotonic() - started:.1f} s", flush=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_MAX_ERROR]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":  # the library's own workers import this module, too
    sys.exit(main(sys.argv[1:]))
