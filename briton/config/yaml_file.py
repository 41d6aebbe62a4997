"""A YAML file that remembers its lines. Knows nothing of what the keys mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from briton.errors import ConfigError


@dataclass(frozen=True)
class YamlFile:
    """A parsed file whose top level is a mapping."""

    path: Path
    data: dict[str, Any]
    root: yaml.MappingNode

    def find(self, location: Sequence[str | int]) -> tuple[tuple[str, ...], int]:
        """The part of `location` that the file has, and the line (from 1) where it ends.

        Steps that the file does not have (the tag of a union, a missing key) are passed over.
        """
        node: yaml.Node = self.root
        found: list[str] = []
        line = node.start_mark.line
        for step in location:
            child = _child(node, step)
            if child is not None:
                key, node = child
                line = key.start_mark.line
                found.append(str(step))
        return tuple(found), line + 1


def read_yaml(path: Path) -> YamlFile:
    """Read a file. Raises ConfigError, with the line where known, for what is not one mapping with distinct keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{path}: the file is empty")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:{root.start_mark.line + 1}: the top level must be a mapping of keys")
        _refuse_duplicates(path, root)
        data: dict[str, Any] = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line_number}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        # PyYAML's constructors let these through, for a tag or a date whose text does not fit it.
        raise ConfigError(f"{path}: a value does not fit its YAML type: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return YamlFile(path, data, root)


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    if isinstance(node, yaml.MappingNode):
        return next((pair for pair in node.value if pair[0].value == str(step)), None)
    return None


def _refuse_duplicates(path: Path, root: yaml.Node) -> None:
    """YAML forbids equal keys, PyYAML keeps the last one."""
    seen: set[int] = set()  # an alias is the same node again
    nodes: list[tuple[yaml.Node, str]] = [(root, "")]
    while nodes:
        node, field = nodes.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicate_keys(path, node, field)
            nodes += [(child, f"{field}{key.value}.") for key, child in node.value]
        else:
            nodes += [(child, f"{field}{index}.") for index, child in enumerate(node.value)]


def _refuse_duplicate_keys(path: Path, node: yaml.MappingNode, prefix: str) -> None:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in first:
            field = f"{prefix}{key.value}"
            raise ConfigError(f"{path}:{line}: {field}: the key is there twice, first in line {first[name]}", field)
        first[name] = line
