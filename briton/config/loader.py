"""config.yaml -> Config. Whatever is wrong with the file ends in a ConfigError with file, line and field."""

from __future__ import annotations

import datetime
import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from briton.config.advice import advice
from briton.config.briton_section import BritonSection
from briton.config.config import Config
from briton.config.public_url import public_url
from briton.config.truss import TrussConfig
from briton.config.yaml_file import YamlFile, read_yaml
from briton.errors import ConfigError

_SHOWN_VALUE = 60  # characters of an offending value


def load_config(path: Path) -> Config:
    """Read a Truss config with its `trt_llm` and `briton` sections. Raises ConfigError(message, field)."""
    file = read_yaml(path)
    if file.data.get("trt_llm") is None:
        raise ConfigError(f"{path}: trt_llm: the section is missing, so there is no model to serve", "trt_llm")
    try:
        truss = TrussConfig.model_validate(file.data)
    except ValidationError as error:
        raise _config_error(file, error) from None
    briton = truss.briton
    if briton.cache_dir is not None:  # relative to the file, as a LOCAL checkpoint is
        cache_dir = os.path.abspath(path.parent / os.path.expanduser(briton.cache_dir))
        briton = briton.model_copy(update={"cache_dir": Path(cache_dir)})
    return Config(
        trt_llm=truss.trt_llm,
        briton=briton,
        path=path,
        model_name=truss.model_name,
        resources=truss.resources,
        warnings=tuple(advice(truss)),
    )


def _config_error(file: YamlFile, error: ValidationError) -> ConfigError:
    """The first error with file, line, field and value, and the fields of the others."""
    details = error.errors(include_url=False)
    field, line = _locate(file, details[0])
    others = dict.fromkeys(_locate(file, detail)[0] for detail in details)
    others.pop(field)
    also = f" (also wrong: {', '.join(others)})" if others else ""
    return ConfigError(f"{file.path}:{line}: {field}: {_message(details[0])}{also}", field)


def _locate(file: YamlFile, detail: ErrorDetails) -> tuple[str, int]:
    """The dotted path of the field, and its line or that of the section it would be in."""
    location = list(detail["loc"])
    if location[:1] == ["trt_llm"] and location[1:2] in (["v1"], ["v2"]):
        del location[1]  # the tag of the union
    named = str(detail.get("ctx", {}).get("field", ""))
    # Validators name the field that is wrong, which may be one that the file leaves at its default.
    wrong = [*location, *named.split(".")] if named else location
    found, line = file.find(wrong)
    if named or detail["type"] == "missing":
        return ".".join(str(step) for step in wrong), line
    return ".".join(found), line


def _message(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "refused":
            return str(detail["msg"])
        case "missing":
            return "required, and missing"
        case "extra_forbidden":
            return f"unknown key{_suggestion(detail)}"
    value: Any = detail["input"]
    is_word = isinstance(value, (bool, int, float, datetime.date))  # to YAML, though meant as text
    quote = " (quote it)" if detail["type"] == "string_type" and is_word else ""
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}, not {_shown(value)}{quote}"


def _shown(value: Any) -> str:
    """A short form of an offending value, and of a URL what is not secret."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"  # Python refuses to print the longest
    value = public_url(value) if isinstance(value, str) else value
    text = repr(value) if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 3] + "..."


def _suggestion(detail: ErrorDetails) -> str:
    model: Any = BritonSection
    for step in detail["loc"][1:-1]:
        model = model.model_fields[str(step)].annotation
    close = difflib.get_close_matches(str(detail["loc"][-1]), list(model.model_fields), n=1)
    return f": did you mean {close[0]}?" if close else f"; known are {', '.join(model.model_fields)}"
