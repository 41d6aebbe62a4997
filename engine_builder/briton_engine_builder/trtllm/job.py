"""What the child process is told: one JSON file, so that a failed build can be looked at, and run again by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from briton.trtllm.library_objects import Call, Member, plain
from briton.trtllm.plan import TrtllmPlan

OUTPUT, WORKSPACE = "output", "workspace"  # directories beside the job's file
SAVED = "saved"  # an empty file beside the job's, once the engine is complete
PHASE = "briton: phase "  # how a line of the child's begins that says what it is doing


@dataclass(frozen=True, slots=True)
class BuildJob:
    """One build. Calls are those of the plan, arguments of `tensorrt_llm._tensorrt_engine.LLM`."""

    library_version: str  # that has to be installed
    gpu_architecture: str  # of the GPU that the engine is to be built on: "sm_90"
    world_size: int
    checkpoint: str  # a directory with config.json and safetensors
    llm_arguments: Mapping[str, Any]
    build_config: Call
    quant_config: Call | None = None
    calib_config: Call | None = None
    speculative_config: Call | None = None
    peft_cache_config: Call | None = None
    # A recipe of nvidia-modelopt: the checkpoint is quantized with it first, and the engine built from what it exports.
    model_optimizer_recipe: str | None = None

    def described(self) -> dict[str, Any]:
        """All that the engine depends on but the checkpoint, in the library's own names: for the cache and the
        manifest."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "checkpoint"}
        return {name: plain(value) for name, value in values.items()}

    def save(self, directory: Path) -> Path:
        """Write DIRECTORY/job.json."""
        file = directory / "job.json"
        values = {name: _encoded(getattr(self, name)) for name in self.__slots__}
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return file


def load_job(file: Path) -> BuildJob:
    """Read what `BuildJob.save` wrote."""
    values = json.loads(file.read_text(encoding="utf-8"))
    return BuildJob(**{name: _decoded(value) for name, value in values.items()})


def job_of(plan: TrtllmPlan, checkpoint: Path, library_version: str, gpu_architecture: str) -> BuildJob:
    """The job of a plan."""
    quantization = plan.quantization
    return BuildJob(
        library_version=library_version,
        gpu_architecture=gpu_architecture,
        world_size=plan.build.parallelism.world_size,
        checkpoint=str(checkpoint.absolute()),
        llm_arguments=dict(plan.build.llm_arguments),
        build_config=plan.build.build_config,
        quant_config=quantization.quant_config if quantization.quant_config.arguments else None,
        calib_config=plan.calibration.calib_config if plan.calibration else None,
        speculative_config=plan.build.speculative_config,
        peft_cache_config=plan.build.peft_cache_config,
        model_optimizer_recipe=quantization.model_optimizer_recipe,
    )


def _encoded(value: Any) -> Any:
    match value:
        case Call():
            return {"call": value.name, "module": value.module, "arguments": _encoded(value.arguments)}
        case Member():
            return {"member": asdict(value)}
        case list() | tuple():
            return [_encoded(item) for item in value]
        case Mapping():
            return {name: _encoded(item) for name, item in value.items()}
    return value


def _decoded(value: Any) -> Any:
    match value:
        case {"call": name, "module": module, "arguments": arguments}:
            return Call(name, _decoded(arguments), module)
        case {"member": fields}:
            return Member(**fields)
        case list():
            return [_decoded(item) for item in value]
        case dict():
            return {name: _decoded(item) for name, item in value.items()}
    return value
