"""A tar.gz from anywhere: what is taken out of it, and what it must not do."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from briton.errors import BuildError
from briton_engine_builder.sources import archive as module
from briton_engine_builder.sources.archive import unpack

MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}"}
TOO_LONG = f"a member has more than {module._MAX_HEADER_BYTES} bytes of headers: pack it without attributes"
WHERE = "checkpoint_repository.repo http://host/m.tar.gz"


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    """One member of an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar.gz of them."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def files(prefix: str = "", **others: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The model's files below a prefix."""
    return [member(prefix + name, data) for name, data in {**MODEL, **others}.items()]


def unpacked(content: bytes, tmp_path: Path) -> dict[str, bytes]:
    """What is in the directory after `unpack`."""
    (tmp_path / "m.tar.gz").write_bytes(content)
    directory = tmp_path / "unpacked"
    directory.mkdir()
    read: list[int] = []
    unpack(tmp_path / "m.tar.gz", directory, WHERE, read.append)
    assert sum(read) <= len(content)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refusal(content: bytes, tmp_path: Path) -> str:
    """The line that a bad archive ends with."""
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(BuildError) as caught:
        unpacked(content, tmp_path)
    message = caught.value.message
    assert "\n" not in message
    assert WHERE in message
    inside = (tmp_path / "m.tar.gz", tmp_path / "unpacked")
    new = set(tmp_path.parent.rglob("*")) - before
    assert all(path in inside or inside[1] in path.parents for path in new)
    return message.removeprefix(WHERE).removeprefix(" ").removeprefix(": ")


@pytest.mark.parametrize("prefix", ["", "./", "some/where/"])
def test_the_directory_with_the_model(tmp_path: Path, prefix: str) -> None:
    others = [member(f"{prefix}README.md", b"#"), member(f"{prefix}code/evil.py", b""), member("._config.json", b"\0")]
    assert unpacked(packed(*others, *files(prefix)), tmp_path) == MODEL


def test_the_one_gguf(tmp_path: Path) -> None:
    content = packed(member("d", kind=tarfile.DIRTYPE), member("d/m.gguf", b"GGUF"), member("x/package.json", b"{}"))
    assert unpacked(content, tmp_path) == {"m.gguf": b"GGUF"}


@pytest.mark.parametrize("name", ["../config.json", "a/../../config.json", "/tmp/config.json", "../unwanted.txt"])
def test_members_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    assert refusal(packed(member(name, b"{}"), *files()), tmp_path) == f"its member {name!r} points out of the archive"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("link", ["/etc/passwd", "../../secret", "model.safetensors"])
def test_links_are_refused(tmp_path: Path, kind: bytes, link: str) -> None:
    told = refusal(packed(*files(), member("tokenizer_config.json", kind=kind, link=link)), tmp_path)
    assert told == "its member 'tokenizer_config.json' is a link: pack the files themselves (tar --dereference)"


def test_a_linked_directory_is_no_way_out(tmp_path: Path) -> None:
    """A link that is not a model's file is left out, so what would go through it stays inside."""
    out = tmp_path / "out"
    out.mkdir()
    escape = member("m", kind=tarfile.SYMTYPE, link=str(out))
    assert unpacked(packed(escape, *files("m/")), tmp_path) == MODEL
    assert list(out.iterdir()) == []


def test_names_that_would_break_a_line(tmp_path: Path) -> None:
    told = refusal(packed(member("a\nb.json", b"{}"), *files()), tmp_path)
    assert told == "its member 'a\\nb.json' has a name that cannot be used"


def test_devices_are_left_out(tmp_path: Path) -> None:
    assert unpacked(packed(member("special.json", kind=tarfile.CHRTYPE), *files()), tmp_path) == MODEL


def test_archives_without_one_model(tmp_path: Path) -> None:
    cases = {
        packed(member("README.md")): "has no model: neither a .gguf nor config.json with .safetensors",
        packed(member("config.json", b"{}")): "has no model: neither a .gguf nor config.json with .safetensors",
        packed(member("a/m.safetensors")): "has .safetensors weights and no config.json beside them",
        packed(member("a.gguf"), member("b/b.gguf")): "has 2 models (a.gguf, b/b.gguf): pack one",
        packed(*files("a/"), *files("b/")): "has 2 models (a, b): pack one",
    }
    for number, (content, message) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert refusal(content, folder) == message


def test_what_is_no_archive(tmp_path: Path) -> None:
    cases = {
        b"<html>": "is not a tar.gz",
        b"": "is not a tar.gz",
        gzip.compress(b"no tar" * 1000): "is damaged or cut short: ReadError: ",
    }
    for number, (content, message) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert refusal(content, folder).startswith(message)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_archives_that_are_cut_short(tmp_path: Path, share: float) -> None:
    content = packed(*files(noise=bytes(range(256)) * 100))
    assert refusal(content[: int(len(content) * share)], tmp_path).startswith("is damaged or cut short: ")


def test_an_archive_whose_checksum_is_wrong(tmp_path: Path) -> None:
    """Damage that still decompresses shows at the very end only."""
    content = bytearray(packed(*files()))
    content[-8] ^= 1
    assert refusal(bytes(content), tmp_path).startswith("is damaged or cut short: BadGzipFile: CRC check failed")


def test_a_tar_that_was_cut_before_it_was_compressed(tmp_path: Path) -> None:
    whole = gzip.decompress(packed(*files()))
    assert refusal(gzip.compress(whole[:3000]), tmp_path).startswith("is damaged or cut short: ")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_JSON_BYTES", 100)
    told = refusal(packed(member("tokenizer.json", bytes(101))), tmp_path)
    assert told == "its member 'tokenizer.json' has 101 bytes, the limit is 100"


def test_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_MEMBERS", 10)
    assert refusal(packed(*(member(f"{n}.txt") for n in range(11))), tmp_path).startswith("has more than 10 members")


def with_header(kind: bytes, block: bytes, blocks: int) -> bytes:
    """A model behind an extended header of so many blocks."""
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, len(block) * blocks
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(blocks):
            stream.write(block)
        stream.write(gzip.decompress(packed(*files())))
    return content.getvalue()


@pytest.mark.parametrize(
    "kind", [b"x", b"g", b"X", b"L", b"K"], ids=["pax", "global", "solaris", "longname", "longlink"]
)
def test_headers_are_bounded(tmp_path: Path, kind: bytes) -> None:
    """Regression: 1.1 MB of tar.gz took 263 MB, since tarfile reads a header of any size into memory."""
    content = with_header(kind, b"20 comment=abcdefghi\n"[:16] * (1 << 16), 64)
    assert len(content) < 1 << 20
    tracemalloc.start()
    try:
        told = refusal(content, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert told == TOO_LONG


def test_a_sparse_map_is_bounded(tmp_path: Path) -> None:
    info = tarfile.TarInfo("model.safetensors")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "1",
    }
    data = b"999999999\n" + b"0\n" * (8 << 20)
    info.size = len(data)
    assert refusal(packed((info, data)), tmp_path) == TOO_LONG


@pytest.mark.parametrize("first", [True, False])
def test_a_sparse_map_that_is_no_map(tmp_path: Path, first: bool) -> None:
    info, data = member("model.safetensors", b"none\n" * 200)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    members = [(info, data), *files()]
    told = refusal(packed(*(members if first else members[::-1])), tmp_path)
    assert told.startswith("is damaged or cut short: ReadError: bad header: ")


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_many_small_headers_for_one_member(tmp_path: Path, kind: bytes) -> None:
    """tarfile reads one within the other: what has too many is refused, however deep Python lets it go."""
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 0
    chain = header.tobuf(tarfile.GNU_FORMAT) * 2000
    assert refusal(gzip.compress(chain + gzip.decompress(packed(*files()))), tmp_path) == TOO_LONG


def test_headers_of_many_members_do_not_add_up(tmp_path: Path) -> None:
    """A global header holds for all that follow: tarfile keeps each, and all members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        for number in range(200):
            info = tarfile.TarInfo(f"{number}.txt")
            header = {f"COMMENT.{number}.{key}": "x" * 1000 for key in range(30)}
            tar.fileobj.write(info.create_pax_global_header(header))
            info.pax_headers = {"comment": "ä"}
            tar.addfile(info)
        for info, data in files():
            tar.addfile(info, io.BytesIO(data))
    tracemalloc.start()
    try:
        assert unpacked(content.getvalue(), tmp_path) == MODEL
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_ordinary_extended_headers_are_read(tmp_path: Path) -> None:
    """Long names, and what macOS and git add."""
    folder = "/".join(["directory" * 9] * 3)
    content = packed(*files(f"{folder}/"))
    assert unpacked(content, tmp_path) == MODEL


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 6000}))
    assert "not enough disk space in " in refusal(packed(*files()), tmp_path)
