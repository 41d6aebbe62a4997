"""The tables of docs/grpc.md, from the proto and its comments."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tools.docs.sections import table

_PROTO = "briton/v1/engine.proto"
# Numbers of fields in FileDescriptorProto, DescriptorProto, ...: how the comments' paths are spelled.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _METHOD, _VALUE = 4, 5, 6, 2, 2, 2

Comments = dict[tuple[int, ...], str]


def sections(root: Path) -> dict[str, str]:
    """The calls, and every message and enumeration with its fields."""
    file = _file(root)
    comments: Comments = {
        tuple(location.path): " ".join((location.leading_comments or location.trailing_comments).split())
        for location in file.source_code_info.location
    }
    return {"calls": _calls(file, comments), "messages": "\n".join(_messages(file, comments))}


def _file(root: Path) -> FileDescriptorProto:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "descriptors"
        include = importlib.resources.files("grpc_tools") / "_proto"
        arguments = ["protoc", f"--proto_path={root / 'proto'}", f"--proto_path={include}", "--include_source_info"]
        if protoc.main([*arguments, f"--descriptor_set_out={target}", _PROTO]) != 0:
            raise SystemExit(f"protoc failed on {_PROTO}")
        return FileDescriptorSet.FromString(target.read_bytes()).file[0]


def _calls(file: FileDescriptorProto, comments: Comments) -> str:
    rows = []
    for i, service in enumerate(file.service):
        for j, method in enumerate(service.method):
            answer = f"{'stream of ' if method.server_streaming else ''}`{_short(method.output_type)}`"
            comment = comments.get((_SERVICE, i, _METHOD, j), "")
            rows.append((f"`{method.name}`", f"`{_short(method.input_type)}`", answer, comment))
    return table(("call", "takes", "answers", "what it does"), rows)


def _messages(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for i, message in enumerate(file.message_type):
        rows = [
            (f"`{field.name}`", _type(field, message), comments.get((_MESSAGE, i, _FIELD, j), ""))
            for j, field in enumerate(message.field)
        ]
        if rows:
            yield _section(message, comments.get((_MESSAGE, i), ""), table(("field", "type", "what it is"), rows))
    for i, enum in enumerate(file.enum_type):
        values = [(f"`{value.name}`", comments.get((_ENUM, i, _VALUE, j), "")) for j, value in enumerate(enum.value)]
        yield _section(enum, comments.get((_ENUM, i), ""), table(("value", "what it is"), values))


def _section(entry: DescriptorProto | EnumDescriptorProto, comment: str, rows: str) -> str:
    return f"### {entry.name}\n\n{comment}\n\n{rows}" if comment else f"### {entry.name}\n\n{rows}"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if (entry := entries.get(_short(field.type_name))) is not None:
        key, value = entry.field
        return f"map of `{_scalar(key)}` to `{_scalar(value)}`"
    parts = [f"`{_scalar(field)}`"]
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        parts.insert(0, "repeated")
    elif field.proto3_optional:
        parts.insert(0, "optional")
    elif field.HasField("oneof_index"):
        parts.append(f"(one of `{message.oneof_decl[field.oneof_index].name}`)")
    return " ".join(parts)


def _scalar(field: FieldDescriptorProto) -> str:
    return _short(field.type_name) or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _short(name: str) -> str:
    return name.rpartition(".")[2]
