"""A GGUF with its matrices in Q8_0, from a GGUF in any other type: dequantized and quantized again, the rest copied.

All programs of a benchmark read this one file, so that all of them compute with the same weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf

Q8_0 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32


def requantize(source: Path, target: Path) -> None:
    """Write `target`, at once or not at all."""
    reader = gguf.GGUFReader(source)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(partial, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # the writer's own
        kind = field.types[0]
        element = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, sub_type=element)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), raw_dtype=F32)
        elif tensor.tensor_type is Q8_0:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=Q8_0)
        else:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights, Q8_0), raw_dtype=Q8_0)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
