"""Stands in for the library's builder, in a process of its own: the table of its API as classes that refuse what is not
in it, and an LLM that writes what the real one would, without an engine in it.

What it is to do, and what machine it is on, is in the JSON file that STAND_IN names: see tests/engine_builder/trtllm/
stand_in.py. Modules that the table does not have cannot be imported.
"""

from __future__ import annotations

import enum
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

STATE = json.loads(Path(os.environ["STAND_IN"]).read_text(encoding="utf-8"))
TABLE = json.loads(Path(STATE["table"]).read_text(encoding="utf-8"))
__version__ = version("tensorrt_llm")
_CALIBRATED = ("FP8", "NVFP4", "W8A8_SQ_PER_CHANNEL")


def _log(**call: Any) -> None:
    with Path(STATE["calls"]).open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(call) + "\n")


def _signature(parameters: list[dict[str, Any]], keyword_only_after: int | None) -> inspect.Signature:
    kind = inspect.Parameter
    return inspect.Signature(
        [
            kind(
                p["name"],
                kind.POSITIONAL_OR_KEYWORD
                if keyword_only_after is not None and number < keyword_only_after
                else kind.KEYWORD_ONLY,
                default=kind.empty if p["required"] else p["default"],
            )
            for number, p in enumerate(parameters)
        ]
    )


class _Refused(ValueError):
    """As pydantic's ValidationError prints itself, on several lines."""

    def __init__(self, name: str, field: str, what: str) -> None:
        super().__init__(f"1 validation error for {name}\n{field}\n  {what}")


def _bind(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    for key in kwargs:
        if key not in signature.parameters:
            raise _Refused(name, key, "Extra inputs are not permitted")
    bound = signature.bind(*args, **kwargs)
    for field, value in bound.arguments.items():
        allowed = TABLE["allowed"].get(f"{name}.{field}")
        if allowed is not None and value not in allowed:
            raise _Refused(name, field, f"Input should be one of {allowed}, not {value!r}")
    bound.apply_defaults()
    return dict(bound.arguments)


def _class(name: str, described: dict[str, Any]) -> type:
    signature = _signature(described["parameters"], described.get("keyword_only_after"))

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for field, value in _bind(name, signature, args, kwargs).items():
            object.__setattr__(self, field, _default(value))

    def __setattr__(self: Any, field: str, value: Any) -> None:
        if field not in signature.parameters:
            raise AttributeError(f"{name} has no field {field}")
        object.__setattr__(self, field, value)

    return type(name, (), {"__init__": __init__, "__setattr__": __setattr__, "__signature__": signature})


def _default(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("()"):
        return CLASSES[value[:-2]]()
    owner, _, member = value.partition(".") if isinstance(value, str) else ("", "", "")
    return ENUMS[owner][member] if owner in ENUMS else value


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if type(value).__name__ in CLASSES:
        return {name: _plain(item) for name, item in vars(value).items() if not name.startswith("_")}
    return value


ENUMS: dict[str, Any] = {name: enum.Enum(name, e["members"]) for name, e in TABLE["enums"].items()}
CLASSES = {name: _class(name, described) for name, described in TABLE["classes"].items() if name != "LLM"}
_LLM_SIGNATURE = _signature(TABLE["classes"]["LLM"]["parameters"], TABLE["classes"]["LLM"]["keyword_only_after"])


class LLM:
    """Builds in its constructor, as the real one does, and saves a copy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _bind("LLM", _LLM_SIGNATURE, args, kwargs)
        for field, kind in (
            *(("build_config", "BuildConfig"), ("quant_config", "QuantConfig"), ("calib_config", "CalibConfig")),
            ("speculative_config", "LookaheadDecodingConfig"),
        ):
            if given[field] is not None and type(given[field]) is not CLASSES[kind]:
                raise _Refused("TrtLlmArgs", field, f"Input should be an instance of {kind}")
        _log(call="LLM", **{name: _plain(value) for name, value in kwargs.items()})
        print("Loading Model: [1/2]\tLoading HF model to memory", flush=True)
        self._args, self._ranks = given, given["tensor_parallel_size"] * given["pipeline_parallel_size"]
        if self._ranks > STATE["devices"]:
            raise RuntimeError(f"Only {STATE['devices']} GPUs are available, but {self._ranks} are required.")
        model = Path(given["model"])
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        if "pretrained" in config:  # what quantize_and_export wrote
            assert given["quant_config"] is None, "the checkpoint says how it is quantized"
            assert given["tokenizer"], "the checkpoint has no tokenizer"
            if config["ranks"] != self._ranks:
                raise ValueError(f"tp_size {self._ranks} is not consistent with the checkpoint's")
        else:
            assert list(model.glob("*.safetensors")), "a checkpoint has weights"
            self._calibrate(given["quant_config"], given["calib_config"])
        self._workspace = tempfile.TemporaryDirectory(suffix="-llm-workspace", dir=given["workspace"])
        _fail("build")
        self._build(config.get("pretrained", config))

    def _calibrate(self, quantization: Any, calibration: Any) -> None:
        algorithm = quantization and quantization.quant_algo
        if algorithm is None or algorithm.name not in _CALIBRATED:
            return
        _dataset(calibration.calib_dataset)
        _fail("calibration")

    def _build(self, model: dict[str, Any]) -> None:
        print("Loading Model: [2/2]\tBuilding TRT-LLM engine", flush=True)
        build, speculative = self._args["build_config"], self._args["speculative_config"]
        if speculative is not None:
            w, n, g = (speculative.max_window_size, speculative.max_ngram_size, speculative.max_verification_set_size)
            build.max_draft_len = max(build.max_draft_len, (0 if n == 1 else n - 2) + (w - 1 + g) * (n - 1))
        if self._ranks == 1:
            build.plugin_config.nccl_plugin = None
        built = _plain(build)
        built.update(STATE.get("built", {}))
        mapping = {"tp_size": self._args["tensor_parallel_size"], "pp_size": self._args["pipeline_parallel_size"]}
        engine = Path(self._workspace.name) / "tmp.engine"
        engine.mkdir()
        pretrained = {"vocab_size": model["vocab_size"], "mapping": {**mapping, "world_size": self._ranks}}
        config = {"version": __version__, "pretrained_config": pretrained, "build_config": built}
        (engine / "config.json").write_text(json.dumps(config))
        for rank in range(self._ranks):
            (engine / f"rank{rank}.engine").write_bytes(b"not an engine")
        (engine / "tokenizer.json").write_text("{}")  # as transformers would write it anew
        self._engine = engine

    def save(self, engine_dir: str) -> None:
        """Copy the engine."""
        if STATE.get("fault") == "save":
            Path(engine_dir).mkdir()
            (Path(engine_dir) / "rank0.engine").write_bytes(b"half")
        _fail("save")
        shutil.copytree(self._engine, engine_dir, dirs_exist_ok=True)

    def shutdown(self) -> None:
        """End the executor that the constructor has started."""
        self._workspace.cleanup()
        if STATE.get("fault") == "teardown":
            os.kill(os.getpid(), signal.SIGSEGV)


def quant_cfg_choices() -> dict[str, Any]:
    """What the library quantizes with, by name."""
    return {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG"}


def quantize_and_export(*args: Any, **kwargs: Any) -> None:
    """Write a checkpoint of the library's own."""
    described = TABLE["functions"]["quantize_and_export"]
    given = _bind("quantize_and_export", _signature(described["parameters"], None), args, kwargs)
    module = sys.modules[described["module"]]
    _log(call="quantize_and_export", recipe=module.quant_cfg_choices()[given["qformat"]], **kwargs)
    _dataset(given["calib_dataset"])
    model = json.loads((Path(given["model_dir"]) / "config.json").read_text(encoding="utf-8"))
    output = Path(given["output_dir"])
    output.mkdir(parents=True)
    ranks = given["tp_size"] * given["pp_size"]
    (output / "config.json").write_text(json.dumps({"pretrained": model, "ranks": ranks}))


def _dataset(name: str) -> None:
    if "cnn_dailymail" not in name and not Path(name).is_dir():
        raise NotImplementedError(f"Unsupported dataset name or local repo directory: {name}.")


def _fail(where: str) -> None:
    match STATE.get("fault"):
        case fault if fault == where:
            raise RuntimeError(f"CUDA out of memory in {where}.\nTried to allocate 2.00 GiB\n1  0x7f stack trace")
        case "killed" if where == "build":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" if where == "build":
            Path(STATE["calls"]).with_name("hanging").write_text(str(os.getpid()))
            time.sleep(600)


def _modules() -> None:
    functions = {"quantize_and_export": quantize_and_export, "quant_cfg_choices": quant_cfg_choices}
    described = {**TABLE["classes"], **TABLE["enums"], **TABLE["functions"]}
    named = {**CLASSES, **ENUMS, **functions, "LLM": LLM}
    described["quant_cfg_choices"] = described["quantize_and_export"]
    for name, value in named.items():
        module = described[name]["module"]
        if module not in sys.modules:
            sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, value)


_modules()
