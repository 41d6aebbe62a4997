"""source: GCS, through google-cloud-storage, which finds credentials as gcloud's other tools do."""

from __future__ import annotations

import base64
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

_RANGE = 1 << 25  # bytes of one request, which counts as a whole or not at all
_LISTING_S = 30  # how long a listing is tried again
_REFUSED = (401, 403)


class GCSStore:
    """An ObjectStore. Without any credentials the bucket is read as a public one. Raises BuildError, ConfigError."""

    def __init__(self, url: ObjectURL, secret: Secret | None) -> None:
        with importing("GCS", "google-cloud-storage"):
            import google.auth.exceptions
            import google_crc32c
            import requests.exceptions
            import urllib3.exceptions
            from google.api_core import exceptions
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY
        self._url = url
        self._errors, self._auth_errors = exceptions, google.auth.exceptions
        self._connection_errors = (
            exceptions.RetryError,
            google.auth.exceptions.TransportError,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,  # of bytes that are passed on as they are stored
        )
        self._crc32c, self._retry = google_crc32c.Checksum, DEFAULT_RETRY.with_timeout(_LISTING_S)
        try:
            self._client = storage.Client(project=None, credentials=_credentials(secret))
        except google.auth.exceptions.DefaultCredentialsError:
            self._client = storage.Client.create_anonymous_client()

    def list_files(self) -> list[RemoteFile]:
        """See ObjectStore."""
        prefix, where, files = self._url.prefix, describe(str(self._url)), []
        with self._one_line_errors():
            fields = "items(name,size,generation,crc32c),prefixes,nextPageToken"
            blobs = self._client.list_blobs(
                self._url.bucket, prefix=prefix, delimiter="/", fields=fields, retry=self._retry
            )
            for blob in blobs:
                name = blob.name.rpartition("/")[2]
                if name and (not self._url.is_file or blob.name == prefix):
                    checksum = Checksum("CRC32C", base64.b64decode(blob.crc32c), self._crc32c) if blob.crc32c else None
                    files.append(
                        RemoteFile(blob.name, name, blob.size, str(blob.generation), f"{where}: {blob.name}", checksum)
                    )
        return files

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        """See RemoteFiles."""
        assert file.size is not None
        blob = self._client.bucket(self._url.bucket).blob(file.key, generation=int(file.version))
        while begin < file.size:
            with self._one_line_errors(file.key):
                end = min(begin + _RANGE, file.size) - 1
                # as it is stored, even if that is compressed; `download` checks the whole, and tries again
                data = blob.download_as_bytes(start=begin, end=end, raw_download=True, checksum=None, retry=None)
            if not data:
                raise Unreachable(f"cannot fetch {describe(str(self._url))}: an empty answer for {file.key}")
            yield data
            begin += len(data)

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """See RemoteFiles."""
        return file.checksum

    @contextmanager
    def _one_line_errors(self, key: str | None = None) -> Iterator[None]:
        """Whatever Google's libraries raise, as a BuildError that says what to do."""
        where = describe(str(self._url))
        try:
            yield
        except self._errors.NotFound as error:
            if key is None:
                raise BuildError(f"{where}: there is no bucket {self._url.bucket}") from error
            raise BuildError(f"{where}: {key} was changed while it was fetched: try again") from error
        except self._errors.GoogleAPICallError as error:
            if error.code in _REFUSED:
                raise BuildError(
                    f"{where}: GCS refuses access ({int(error.code)}): check what runtime_secret_name names, "
                    "or GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            is_busy = error.code in (408, 429) or (error.code or 0) >= 500
            raise (Unreachable if is_busy else BuildError)(f"cannot fetch {where}: {one_line(error)}") from error
        except self._connection_errors as error:
            raise Unreachable(f"cannot fetch {where}: {one_line(error)}") from error
        except (self._auth_errors.GoogleAuthError, ValueError) as error:
            raise BuildError(f"cannot fetch {where}: {one_line(error)}") from error


def _credentials(secret: Secret | None) -> Any:
    """A secret is the JSON key of a service account; None leaves it to Google's libraries."""
    if secret is None:
        return None
    from google.oauth2 import service_account

    key = secret.fields("client_email", "private_key", "token_uri")
    try:
        return service_account.Credentials.from_service_account_info(key)
    except ValueError as error:
        raise ConfigError(
            f"runtime_secret_name: the secret {secret.name} is not the key of a service account: "
            f"{type(error).__name__}",
            "runtime_secret_name",
        ) from None
