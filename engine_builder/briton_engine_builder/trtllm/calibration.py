"""The text that quantization is calibrated on, fetched where the library does not fetch it itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import huggingface_hub

from briton.config.environment import Environment
from briton.trtllm.build_plan import CalibrationPlan
from briton_engine_builder.sources.hub import one_line_errors
from briton_engine_builder.trtllm.job import BuildJob


def with_calibration_data(job: BuildJob, calibration: CalibrationPlan | None, environment: Environment) -> BuildJob:
    """The job, with a local directory for the dataset that the plan says has to be fetched. Raises BuildError."""
    if calibration is None or not calibration.fetch_dataset or job.calib_config is None:
        return job
    directory = _dataset(calibration.dataset, environment)
    arguments = {**job.calib_config.arguments, "calib_dataset": str(directory)}
    return replace(job, calib_config=replace(job.calib_config, arguments=arguments))


def _dataset(name: str, environment: Environment) -> Path:
    """A directory of that name, or a dataset of the Hugging Face hub; it keeps its own cache of them."""
    if Path(name).is_dir():
        return Path(name).absolute()
    with one_line_errors(name, None):
        folder = huggingface_hub.snapshot_download(name, repo_type="dataset", token=environment.hf_token)
    return Path(folder)
