"""`checkpoint_repository`: which weights, from where."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler  # pydantic itself has it from 2.11 on
from typing_extensions import Self

from briton.config.enums import CheckpointSource
from briton.config.object_url import SCHEMES, parse_object_url
from briton.config.public_url import public_url
from briton.config.section import Section, refuse

HF_SECRET = "hf_access_token"  # the default, whatever the source

# PEP 508 names and PEP 440 versions, loosely: enough that neither can be taken for an option of pip.
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PACKAGE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_ARCHIVE_SUFFIX = re.compile(r"\.(tar\.gz|tgz)$")


class CheckpointRepository(Section):
    """A checkpoint: `source` says how to read `repo` and `revision`.

    HF: repository id and branch, tag or commit (None: the default branch).
    PYPI: package name and version (None: the newest).
    LOCAL: a directory or .gguf file, relative to the config file; no revision.
    S3, GCS: s3://BUCKET/PATH, gs://BUCKET/PATH. AZURE: azure://ACCOUNT/CONTAINER/PATH.
    REMOTE_URL: a tar.gz over HTTP. Its query may be a signature: `repo` is the URL without it, `secret_url` the whole.
    BASETEN_TRAINING: training job and run.
    """

    source: CheckpointSource
    """How `repo` and `revision` are read."""
    repo: str
    """Repository id, package, path or URL, as `source` says."""
    revision: str | None = None
    """HF: branch, tag or commit. PYPI: version. Other sources have none."""
    # A file name below the secrets mount: no path.
    runtime_secret_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] = HF_SECRET
    """The secret that holds the credentials: the variable `TRUSS_SECRET_NAME` or the file `/secrets/NAME`."""
    _url: SecretStr | None = PrivateAttr(None)
    _url_hash: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _split_url(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """From here on nothing but `secret_url` has what the URL is signed with."""
        is_url = isinstance(value, Mapping) and value.get("source") == CheckpointSource.REMOTE_URL
        if not is_url or not isinstance(repo := value.get("repo"), str):
            return handler(value)
        _check_url(repo)
        checked = handler({**value, "repo": public_url(repo)})
        checked._url, checked._url_hash = SecretStr(repo), hashlib.sha256(repo.encode()).hexdigest()
        return checked

    @model_validator(mode="after")
    def _check_repo(self) -> Self:
        if not self.repo.strip() or "\0" in self.repo:
            raise refuse("repo must not be empty", "repo")
        if "://" in self.repo and self.source not in (*SCHEMES, CheckpointSource.REMOTE_URL):
            raise refuse(f"repo is a URL, which source {self.source} does not take", "repo")
        if self.source is CheckpointSource.HF:
            # Imported here: 0.2 s that a PYPI or LOCAL checkpoint does not need. Checks the spelling only, no network.
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

            try:
                validate_repo_id(self.repo)
            except HFValidationError as error:
                raise refuse(f"HuggingFace repository validation failed: {error}", "repo") from None
        elif self.source is CheckpointSource.PYPI:
            if not _PACKAGE_NAME.fullmatch(self.repo):
                raise refuse(f"{self.repo!r} is not the name of a Python package", "repo")
            if self.revision is not None and not _PACKAGE_VERSION.fullmatch(self.revision):
                raise refuse(f"{self.revision!r} is not the version of a Python package", "revision")
        elif self.source in SCHEMES:
            try:
                parse_object_url(self.source, self.repo)
            except ValueError as error:
                raise refuse(str(error), "repo") from None
        return self

    @property
    def secret_url(self) -> SecretStr:
        """The whole URL of a REMOTE_URL, for the one who opens it; nobody shows or keeps it."""
        assert self._url is not None, f"{self.source} has no URL"
        return self._url

    @property
    def key(self) -> str:
        """What tells this repository from others: `repo`, and for a URL a hash of all of it, since a query may name the
        file."""
        return f"{self.repo} {self._url_hash}" if self._url_hash else self.repo

    @property
    def name(self) -> str:
        """The last part of `repo`: what the model is called where nothing else names it."""
        last_part = self.repo.rstrip("/").rpartition("/")[2]
        return _ARCHIVE_SUFFIX.sub("", last_part) if self.source is CheckpointSource.REMOTE_URL else last_part

    def __str__(self) -> str:
        return f"{self.source} {self.repo}" + (f" @ {self.revision}" if self.revision else "")


def _check_url(repo: str) -> None:
    try:
        url = urlsplit(repo)
        is_right = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right or not repo.isascii() or not repo.isprintable() or " " in repo:
        raise refuse("repo is not the http:// or https:// URL of a tar.gz, in ASCII", "repo")
    if "@" in url.netloc:
        raise refuse("repo has a user name or password: runtime_secret_name gives a token", "repo")
