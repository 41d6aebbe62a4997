"""A remote file becomes a local one: interruptions, damage, a full disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from briton.errors import BuildError
from briton_engine_builder.sources import download as module
from briton_engine_builder.sources.download import download
from briton_engine_builder.sources.remote import CannotResume, Checksum, RemoteFile, Unreachable

CONTENT = bytes(range(256)) * 16
MD5 = Checksum("MD5", hashlib.md5(CONTENT).digest(), hashlib.md5)
FILE = RemoteFile("dir/weights", "weights", len(CONTENT), "v1", "dir/weights")


class Remote:
    """One file, sent in pieces of 100 bytes; `breaks` says what happens after how many bytes of each read."""

    def __init__(self, content: bytes = CONTENT, breaks: Iterator[int] = iter(()), *, ranges: bool = True) -> None:
        self.content, self.breaks, self.ranges = content, breaks, ranges
        self.begins: list[int] = []
        self.checksum: Checksum | None = MD5

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        self.begins.append(begin)
        if begin and not self.ranges:
            raise CannotResume
        budget = next(self.breaks, None)
        for position in range(begin, len(self.content), 100):
            if budget is not None and position - begin >= budget:
                raise Unreachable("the connection broke")
            yield self.content[position : position + 100]

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        return self.checksum


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@pytest.fixture
def advance() -> Callable[[int], None]:
    """Counts in its `total`."""

    def count(amount: int) -> None:
        count.total += amount  # type: ignore[attr-defined]

    count.total = 0  # type: ignore[attr-defined]
    return count


def test_in_one_go(tmp_path: Path, advance: Callable[[int], None]) -> None:
    remote = Remote()
    download(remote, FILE, tmp_path / "weights", advance)
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert advance.total == len(CONTENT)  # type: ignore[attr-defined]
    download(remote, FILE, tmp_path / "weights", advance)
    assert remote.begins == [0]


def test_an_empty_file(tmp_path: Path, advance: Callable[[int], None]) -> None:
    remote = Remote(b"")
    remote.checksum = None
    download(remote, RemoteFile("empty", "empty", 0, "v1", "empty"), tmp_path / "empty", advance)
    assert (tmp_path / "empty").read_bytes() == b""
    assert remote.begins == []


def test_it_goes_on_while_something_comes(tmp_path: Path, advance: Callable[[int], None], pauses: list[float]) -> None:
    remote = Remote(breaks=iter([100] * 30))
    download(remote, FILE, tmp_path / "weights", advance)
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert remote.begins == list(range(0, 3100, 100))
    assert set(pauses) == {0.5}
    assert advance.total == len(CONTENT)  # type: ignore[attr-defined]


def test_it_gives_up_and_keeps_what_came(tmp_path: Path, advance: Callable[[int], None], pauses: list[float]) -> None:
    remote = Remote(breaks=iter([500, *[0] * 100]))
    with pytest.raises(Unreachable, match="the connection broke"):
        download(remote, FILE, tmp_path / "weights", advance)
    assert remote.begins == [0, *[500] * 5]
    assert pauses == [0.5, 1, 2, 4, 8]
    assert not (tmp_path / "weights").exists()
    again = Remote()
    download(again, FILE, tmp_path / "weights", advance)
    assert again.begins == [500]
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_a_connection_that_ends_early_without_a_word(tmp_path: Path, advance: Callable[[int], None]) -> None:
    with pytest.raises(Unreachable, match="the connection ended after 1000 of 4096 bytes"):
        download(Remote(CONTENT[:1000]), FILE, tmp_path / "weights", advance)


def test_a_server_without_ranges(tmp_path: Path, advance: Callable[[int], None]) -> None:
    remote = Remote(breaks=iter([500]), ranges=False)
    download(remote, FILE, tmp_path / "weights", advance)
    assert remote.begins == [0, 500, 0]
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert advance.total == len(CONTENT)  # type: ignore[attr-defined]


def test_it_gives_up_on_a_server_without_ranges(tmp_path: Path, advance: Callable[[int], None]) -> None:
    """Each try comes as far as the one before: that is no progress."""
    remote = Remote(breaks=iter([500] * 100), ranges=False)
    with pytest.raises(Unreachable):
        download(remote, FILE, tmp_path / "weights", advance)
    assert remote.begins == [0, *[500, 0] * 5]


def test_what_was_begun_of_a_file_without_version_is_not_used(tmp_path: Path, advance: Callable[[int], None]) -> None:
    (tmp_path / "weights.part").write_bytes(b"of another")
    remote = Remote()
    download(remote, RemoteFile("weights", "weights", None, "", "weights"), tmp_path / "weights", advance)
    assert remote.begins == [0]
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_damage(tmp_path: Path, advance: Callable[[int], None]) -> None:
    (tmp_path / "weights.part").write_bytes(b"damaged")
    with pytest.raises(BuildError, match=r"dir/weights arrived damaged: its MD5 is [0-9a-f]{32}, the server says "):
        download(Remote(), FILE, tmp_path / "weights", advance)
    assert list(tmp_path.iterdir()) == []
    download(Remote(), FILE, tmp_path / "weights", advance)


def test_more_than_was_said(tmp_path: Path, advance: Callable[[int], None]) -> None:
    with pytest.raises(BuildError, match="dir/weights is longer than the 4096 bytes that its server said"):
        download(Remote(CONTENT * 2), FILE, tmp_path / "weights", advance)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, advance: Callable[[int], None]) -> None:
    (tmp_path / "weights.part").symlink_to("/dev/full")
    with pytest.raises(BuildError, match=r"cannot write .*weights\.part: No space left on device"):
        download(Remote(), FILE, tmp_path / "weights", advance)


def test_the_number_of_tries_is_bounded() -> None:
    assert module._TRIES * module._PAUSE_S * 2**module._TRIES < 300


def test_a_server_that_never_ends(tmp_path: Path, advance: Callable[[int], None]) -> None:
    """No more than the size that was said is written, whatever comes."""

    class Endless(Remote):
        def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
            while True:
                yield bytes(100)

    with pytest.raises(BuildError, match=f"dir/weights is longer than the {len(CONTENT)} bytes that its server said"):
        download(Endless(), FILE, tmp_path / "weights", advance)
    assert advance.total <= len(CONTENT)  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
