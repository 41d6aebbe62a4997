"""Quantization by a recipe of nvidia-modelopt that the library's QuantConfig has no word for, such as MLP only.

The library quantizes to NVFP4 by calling `quantize_and_export` itself, with the recipe that `quant_cfg_choices()` has
under "nvfp4". Here that choice is another recipe, and all the rest the library's own: how the model is loaded, how
calibration text is read, what is exported and corrected for each family. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from briton_engine_builder.trtllm.job import BuildJob

MODULE = "tensorrt_llm.quantization.quantize_by_modelopt"
RECIPES_MODULE = "modelopt.torch.quantization"
_FORMAT = "nvfp4"


def quantize(job: BuildJob, calibration: Any, directory: Path) -> Path:
    """Export a quantized TensorRT-LLM checkpoint into `directory`, for the job's ranks. `calibration` is the library's
    CalibConfig. Raises RuntimeError where the installed nvidia-modelopt does not have the recipe."""
    library: Any = importlib.import_module(MODULE)
    recipe = getattr(importlib.import_module(RECIPES_MODULE), str(job.model_optimizer_recipe), None)
    if recipe is None:
        raise RuntimeError(f"the installed nvidia-modelopt has no recipe {job.model_optimizer_recipe}")
    choices = library.quant_cfg_choices
    library.quant_cfg_choices = lambda: {**choices(), _FORMAT: recipe}
    try:
        library.quantize_and_export(
            model_dir=job.checkpoint,
            device=calibration.device,
            calib_dataset=calibration.calib_dataset,
            dtype=job.llm_arguments["dtype"],
            qformat=_FORMAT,
            kv_cache_dtype=None,
            calib_size=calibration.calib_batches * calibration.calib_batch_size,
            batch_size=calibration.calib_batch_size,
            calib_max_seq_length=calibration.calib_max_seq_length,
            awq_block_size=None,
            output_dir=str(directory),
            tp_size=job.llm_arguments["tensor_parallel_size"],
            pp_size=job.llm_arguments["pipeline_parallel_size"],
            cp_size=1,
            seed=calibration.random_seed,
            tokenizer_max_seq_length=calibration.tokenizer_max_seq_length,
        )
    finally:
        library.quant_cfg_choices = choices
    return directory
