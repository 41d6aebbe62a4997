"""How an object of S3, GCS or AZURE is spelled in `checkpoint_repository.repo`. Spelling only, no network."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from briton.config.enums import CheckpointSource
from briton.config.public_url import public_url

SCHEMES = {CheckpointSource.S3: "s3", CheckpointSource.GCS: "gs", CheckpointSource.AZURE: "azure"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ACCOUNT = re.compile(r"[a-z0-9]+")
_CONTAINER = re.compile(r"[a-z0-9][a-z0-9-]*|\$root|\$web")
_AZURE_HOST = ".blob.core.windows.net"


class ObjectURL(NamedTuple):
    """One place in a store: a directory, or a .gguf file."""

    scheme: str
    account: str  # of AZURE; empty elsewhere
    bucket: str  # AZURE calls it a container
    path: str  # without slashes around it; empty for the bucket's top

    @property
    def prefix(self) -> str:
        """What the keys of the files begin with."""
        return self.path if not self.path or self.is_file else f"{self.path}/"

    @property
    def is_file(self) -> bool:
        """Whether the path is that of one file."""
        return self.path.endswith(".gguf")

    def __str__(self) -> str:
        parts = [part for part in (self.account, self.bucket, self.path) if part]
        return f"{self.scheme}://{'/'.join(parts)}"


def parse_object_url(source: CheckpointSource, repo: str) -> ObjectURL:
    """Read s3://BUCKET/PATH, gs://BUCKET/PATH or azure://ACCOUNT/CONTAINER/PATH, also without the scheme.

    AZURE takes https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH too. Raises ValueError.
    """
    scheme = SCHEMES[source]
    rest = repo
    if source is CheckpointSource.AZURE and (url := urlsplit(repo)).scheme == "https" and not url.query:
        account, dot, domain = url.netloc.partition(".")
        if dot + domain == _AZURE_HOST:
            rest = f"{account}{unquote(url.path)}"
    rest = rest.removeprefix(f"{scheme}://")
    account = ""
    if source is CheckpointSource.AZURE:
        account, _, rest = rest.partition("/")
    bucket, _, path = rest.partition("/")
    if source is CheckpointSource.AZURE:
        names_are_right = _ACCOUNT.fullmatch(account) and _CONTAINER.fullmatch(bucket)
    else:
        names_are_right = _BUCKET.fullmatch(bucket)
    if not names_are_right or not path.isprintable():
        form = f"{scheme}://{'ACCOUNT/CONTAINER' if source is CheckpointSource.AZURE else 'BUCKET'}/PATH"
        raise ValueError(f"{public_url(repo)!r} is not of the form {form}")
    if "?" in path:  # legal in a name, and far more often a signature
        raise ValueError("repo has a query (?...): credentials are given with runtime_secret_name")
    return ObjectURL(scheme, account, bucket, path.strip("/"))
