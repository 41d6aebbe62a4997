"""source: AZURE, Azure's blob storage through azure-storage-blob and azure-identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from briton.config.object_url import ObjectURL
from briton.errors import BuildError, ConfigError
from briton_engine_builder.sources.extras import importing
from briton_engine_builder.sources.remote import (
    Checksum,
    RemoteFile,
    Secret,
    Unreachable,
    describe,
    one_line,
)

_RANGE = 1 << 25  # bytes of one request
_RETRIES = {"retry_total": 2, "initial_backoff": 1, "increment_base": 2}  # of the library's; seconds


class AzureStore:
    """An ObjectStore. Raises BuildError, ConfigError.

    Credentials: the secret, {"account_key": ...} as Truss has it, {"sas_token": ...} or a connection string; else
    the connection string of the environment; else what azure-identity finds (not run).
    """

    def __init__(self, url: ObjectURL, secret: Secret | None, connection_string: str | None) -> None:
        with importing("AZURE", "azure-storage-blob", "azure-identity"):
            import azure.core
            import azure.core.exceptions
            import azure.storage.blob
        self._url = url
        self._errors = azure.core.exceptions
        self._if_same = azure.core.MatchConditions.IfNotModified
        with self._one_line_errors():
            self._container = _service(azure.storage.blob.BlobServiceClient, url, secret, connection_string)

    def list_files(self) -> list[RemoteFile]:
        """See ObjectStore."""
        prefix, where, files = self._url.prefix, describe(str(self._url)), []
        with self._one_line_errors():
            for blob in self._container.walk_blobs(name_starts_with=prefix or None, delimiter="/"):
                name = blob.name.rpartition("/")[2]
                if name and (not self._url.is_file or blob.name == prefix):  # a directory's own name ends with /
                    md5 = blob.content_settings.content_md5
                    checksum = Checksum("MD5", bytes(md5), hashlib.md5) if md5 else None
                    etag = '"{}"'.format(blob.etag.strip('"'))  # a listing has them without quotes
                    files.append(RemoteFile(blob.name, name, blob.size, etag, f"{where}: {blob.name}", checksum))
        return files

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        """See RemoteFiles."""
        with self._one_line_errors(file.key):
            stream = self._container.download_blob(
                file.key, offset=begin, etag=file.version, match_condition=self._if_same, max_concurrency=1
            )
            yield from stream.chunks()

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """See RemoteFiles."""
        return file.checksum

    @contextmanager
    def _one_line_errors(self, key: str | None = None) -> Iterator[None]:
        """Whatever Azure's libraries raise, as a BuildError that says what to do."""
        where = describe(str(self._url))
        try:
            yield
        except (self._errors.ResourceNotFoundError, self._errors.ResourceModifiedError) as error:
            if key is None:
                raise BuildError(
                    f"{where}: the account {self._url.account} has no container {self._url.bucket}"
                ) from error
            raise BuildError(f"{where}: {key} was changed while it was fetched: try again") from error
        except self._errors.HttpResponseError as error:
            status = error.status_code
            if status in (401, 403) or isinstance(error, self._errors.ClientAuthenticationError):
                raise BuildError(
                    f"{where}: Azure refuses access ({status or 'no credentials'}): check what runtime_secret_name "
                    "names, or AZURE_STORAGE_CONNECTION_STRING"
                ) from error
            is_busy = status is None or status in (408, 429) or status >= 500
            raise (Unreachable if is_busy else BuildError)(f"cannot fetch {where}: {one_line(error)}") from error
        except self._errors.AzureError as error:  # connections, timeouts, TLS
            raise Unreachable(f"cannot fetch {where}: {one_line(error)}") from error
        except ValueError as error:
            raise BuildError(f"cannot fetch {where}: {one_line(error)}") from error


def _service(service: Any, url: ObjectURL, secret: Secret | None, connection_string: str | None) -> Any:
    """The client of the container that `url` names."""
    options = {**_RETRIES, "max_single_get_size": _RANGE, "max_chunk_get_size": _RANGE}
    account_url = f"https://{url.account}.blob.core.windows.net"
    if secret is not None and "AccountName=" not in secret.value and "SharedAccessSignature=" not in secret.value:
        fields = secret.fields()
        credential = fields.get("account_key") or fields.get("sas_token")
        if not credential:
            raise ConfigError(
                f"runtime_secret_name: the secret {secret.name} has neither account_key nor sas_token",
                "runtime_secret_name",
            )
        client = service(account_url, credential=credential, **options)
    elif connection_string := secret.value if secret is not None else connection_string:
        client = service.from_connection_string(connection_string, **options)
        if client.account_name != url.account:
            raise ConfigError(
                f"{describe(str(url))}: the connection string is of the account {client.account_name}",
                "trt_llm.build.checkpoint_repository.repo",
            )
    else:
        with importing("AZURE", "azure-storage-blob", "azure-identity"):
            from azure.identity import DefaultAzureCredential
        client = service(account_url, credential=DefaultAzureCredential(), **options)
    return client.get_container_client(url.bucket)
