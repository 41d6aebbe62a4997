"""The rules that span the sections of a Truss config."""

from __future__ import annotations

import pytest

from .conftest import V2, LoadChanged, Refusal

ACCELERATOR = "resources.accelerator"
QUANTIZATION = "trt_llm.build.quantization_type"
BASE_MODEL = "trt_llm.build.base_model"
TAGS = "model_metadata.tags"
LEGACY = "force-legacy-api-non-openai-compatible"


@pytest.mark.parametrize("value", ["H100", "H100:1", " H100 ", {"accelerator": "H100", "count": 1}, None, ""])
def test_accelerators(load_changed: LoadChanged, value: object) -> None:
    assert load_changed({ACCELERATOR: value}).accelerator in ("H100", "H100:1", None)


@pytest.mark.parametrize("value", ["H1000", "h100", "H100:", "H100:0", "H100:-1", "H100:x", "H100:²", 4, ["H100"]])
def test_bad_accelerators(refusal: Refusal, value: object) -> None:
    assert refusal({ACCELERATOR: value}).field == ACCELERATOR


@pytest.mark.parametrize("accelerator", ["T4", "V100"])
def test_too_old_but_for_bert(load_changed: LoadChanged, refusal: Refusal, accelerator: str) -> None:
    assert refusal({ACCELERATOR: accelerator}).field == ACCELERATOR
    assert refusal({ACCELERATOR: accelerator}, V2).field == ACCELERATOR
    assert refusal({ACCELERATOR: accelerator, BASE_MODEL: "encoder"}).field == ACCELERATOR
    load_changed({ACCELERATOR: accelerator, BASE_MODEL: "encoder_bert"})


@pytest.mark.parametrize("accelerator", ["A10G", "A100", "A100_40GB"])
@pytest.mark.parametrize("quantization", ["fp8", "fp8_kv", "fp4", "fp4_kv", "fp4_mlp_only"])
def test_no_fp8_hardware(load_changed: LoadChanged, refusal: Refusal, accelerator: str, quantization: str) -> None:
    assert refusal({ACCELERATOR: accelerator, QUANTIZATION: quantization}).field == QUANTIZATION
    load_changed({ACCELERATOR: accelerator, QUANTIZATION: "weights_int4"})


@pytest.mark.parametrize("accelerator", ["H100", "H100_40GB", "H200", "L4", "L40S"])
@pytest.mark.parametrize("quantization", ["fp4", "fp4_kv", "fp4_mlp_only"])
def test_no_fp4_hardware(load_changed: LoadChanged, refusal: Refusal, accelerator: str, quantization: str) -> None:
    assert refusal({ACCELERATOR: accelerator, QUANTIZATION: quantization}).field == QUANTIZATION
    load_changed({ACCELERATOR: accelerator, QUANTIZATION: "fp8_kv"})


@pytest.mark.parametrize("accelerator", ["B200", "B300", "GB300", "RTX_PRO_6000"])
def test_fp4_hardware(load_changed: LoadChanged, accelerator: str) -> None:
    load_changed({ACCELERATOR: accelerator, QUANTIZATION: "fp4_kv"})


def test_quantization_is_free_without_an_accelerator(load_changed: LoadChanged) -> None:
    load_changed({QUANTIZATION: "fp4"})


@pytest.mark.parametrize(
    ("tensor", "pipeline", "sequence", "accelerator"),
    [(2, 1, 1, "H100"), (1, 1, 1, "H100:2"), (2, 2, 1, "H100:2"), (2, 2, 2, "H100:4")],
)
def test_ranks_must_be_the_accelerators(
    refusal: Refusal, tensor: int, pipeline: int, sequence: int, accelerator: str
) -> None:
    error = refusal(
        {
            "trt_llm.build.tensor_parallel_count": tensor,
            "trt_llm.build.pipeline_parallel_count": pipeline,
            "trt_llm.build.sequence_parallel_count": sequence,
            ACCELERATOR: accelerator,
        }
    )
    assert error.field == "trt_llm.build.tensor_parallel_count"
    assert f"{tensor * pipeline * sequence} ranks" in error.message


def test_ranks_that_match(load_changed: LoadChanged) -> None:
    ranks = {"trt_llm.build.tensor_parallel_count": 2, "trt_llm.build.pipeline_parallel_count": 2}
    assert load_changed({**ranks, ACCELERATOR: "H100:4"}).world_size == 4
    assert load_changed(ranks).world_size == 4  # no accelerator given: nothing to compare with
    assert load_changed({ACCELERATOR: "H100:4"}, V2).world_size == 1  # v1's rule


def test_both_tags(load_changed: LoadChanged, refusal: Refusal) -> None:
    both = {TAGS: ["openai-compatible", LEGACY]}
    assert refusal(both).field == TAGS
    load_changed(both, V2)
    load_changed({**both, BASE_MODEL: "encoder"})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [(["openai-compatible"], 0), ("openai-compatible", 0), ([], 1), (None, 1), (["chat"], 1), ([LEGACY], 1)],
)
def test_tag_warnings(load_changed: LoadChanged, tags: object, expected: int) -> None:
    config = load_changed({TAGS: tags})
    assert len(config.warnings) == expected
    assert all(warning.startswith(TAGS) for warning in config.warnings)


def test_other_truss_keys_are_known(load_changed: LoadChanged) -> None:
    changes = {
        "requirements": [],
        "secrets": {"hf_access_token": None},
        "runtime.predict_concurrency": 512,
        "model_cache": [],
        "resources.node_count": 1,
        "model_metadata.anything": 1,
    }
    assert load_changed(changes).warnings == ()


@pytest.mark.parametrize("section", ["resources", "model_metadata", "briton"])
def test_empty_sections(load_changed: LoadChanged, section: str) -> None:
    load_changed({section: None})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({ACCELERATOR: "A100", QUANTIZATION: "weights_int8"}, "not recommended on A100"),
        ({ACCELERATOR: "H100:3", "trt_llm.build.tensor_parallel_count": 3}, "not a power of two"),
        ({BASE_MODEL: "encoder", QUANTIZATION: "fp8_kv"}, "alpha for encoders"),
    ],
)
def test_advice(load_changed: LoadChanged, changes: dict[str, object], part: str) -> None:
    (warning,) = load_changed(changes).warnings
    assert part in warning
