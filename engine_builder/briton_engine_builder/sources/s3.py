"""source: S3, through boto3, which finds credentials and endpoints as AWS's other tools do."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from briton.config.object_url import ObjectURL
from briton.errors import BuildError
from briton_engine_builder.sources.extras import importing
from briton_engine_builder.sources.remote import (
    CHUNK,
    Checksum,
    RemoteFile,
    Secret,
    Unreachable,
    describe,
    one_line,
)

_MD5 = re.compile(r'"([0-9a-f]{32})"')  # the ETag of an object that was uploaded in one piece
_REFUSED = frozenset({"401", "403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "ExpiredToken"})
_REFUSED |= {"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_BUSY = frozenset({"429", "500", "502", "503", "504", "InternalError", "SlowDown", "ServiceUnavailable"})
_BUSY |= {"RequestTimeout", "Throttling", "ThrottlingException"}


class S3Store:
    """An ObjectStore. Without any credentials the bucket is read as a public one. Raises BuildError, ConfigError."""

    def __init__(self, url: ObjectURL, secret: Secret | None) -> None:
        with importing("S3", "boto3[crt]"):
            import boto3
            import botocore.config
            import botocore.exceptions
        self._url = url
        self._errors = botocore.exceptions
        with self._one_line_errors():
            session = boto3.Session(**_session_options(secret))
            self._has_credentials = session.get_credentials() is not None
            anonymous = {} if self._has_credentials else {"signature_version": botocore.UNSIGNED}
            options = botocore.config.Config(
                connect_timeout=10,
                retries={"mode": "standard", "total_max_attempts": 3},
                response_checksum_validation="when_required",  # whole files are checked, not the ranges of them
                **anonymous,
            )
            region = session.region_name or "us-east-1"  # of a bucket that is elsewhere S3 says so, and boto3 follows
            self._client = session.client("s3", config=options, region_name=region)

    def list_files(self) -> list[RemoteFile]:
        """See ObjectStore."""
        prefix, files = self._url.prefix, []
        with self._one_line_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._url.bucket, Prefix=prefix, Delimiter="/"
            )
            for found in (found for page in pages for found in page.get("Contents", ())):
                key = found["Key"]
                name = key.rpartition("/")[2]
                if name and (not self._url.is_file or key == prefix):  # no name: a directory's own marker
                    files.append(
                        RemoteFile(key, name, found["Size"], found["ETag"], f"{describe(str(self._url))}: {key}")
                    )
        return files

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        """See RemoteFiles."""
        with self._one_line_errors(file.key):
            answer = self._client.get_object(
                Bucket=self._url.bucket, Key=file.key, IfMatch=file.version, Range=f"bytes={begin}-"
            )
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK)

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """See RemoteFiles. A checksum of checksums of parts, as large uploads may have, cannot be checked: None."""
        with self._one_line_errors(file.key):
            head = self._client.head_object(
                Bucket=self._url.bucket, Key=file.key, IfMatch=file.version, ChecksumMode="ENABLED"
            )
        return checksum_from(head)

    @contextmanager
    def _one_line_errors(self, key: str | None = None) -> Iterator[None]:
        """Whatever botocore raises, as a BuildError that says what to do."""
        where = describe(str(self._url))
        try:
            yield
        except self._errors.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "NoSuchBucket":
                raise BuildError(f"{where}: there is no bucket {self._url.bucket}") from error
            if code in _REFUSED:
                given = "these credentials" if self._has_credentials else "no credentials, and none were found"
                raise BuildError(
                    f"{where}: S3 refuses access with {given} ({code}): check what runtime_secret_name names, "
                    "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from error
            if code in ("412", "PreconditionFailed", "404", "NoSuchKey") and key is not None:
                raise BuildError(f"{where}: {key} was changed while it was fetched: try again") from error
            kind = Unreachable if code in _BUSY else BuildError
            raise kind(f"cannot fetch {where}: {one_line(error)}") from error
        except (
            self._errors.ConnectionError,  # timeouts and TLS too
            self._errors.HTTPClientError,
            self._errors.ResponseStreamingError,
            self._errors.IncompleteReadError,
        ) as error:
            raise Unreachable(f"cannot fetch {where}: {one_line(error)}") from error
        except (self._errors.BotoCoreError, ValueError) as error:
            raise BuildError(f"cannot fetch {where}: {one_line(error)}") from error


def checksum_from(head: dict[str, Any]) -> Checksum | None:
    """The best whole-object checksum in the answer to HeadObject.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    for field, (name, new) in _checksums().items():
        value = head.get(f"Checksum{field}")
        if value and "-" not in value and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return Checksum(name, base64.b64decode(value), new)
    md5 = _MD5.fullmatch(head.get("ETag", ""))
    # with a key of KMS or of the customer the ETag is another hash
    if md5 and head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head:
        return Checksum("MD5", bytes.fromhex(md5[1]), hashlib.md5)
    return None


class _CRC:
    """A checksum function that takes its own last value, as a Digest."""

    def __init__(self, function: Callable[[bytes, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _checksums() -> dict[str, tuple[str, Callable[[], Any]]]:
    """By the field of HeadObject's answer, the strongest first. Without awscrt those that Python has."""
    known: dict[str, tuple[str, Callable[[], Any]]] = {"SHA256": ("SHA-256", hashlib.sha256)}
    known["SHA1"] = ("SHA-1", hashlib.sha1)
    try:
        from awscrt import checksums
    except ImportError:
        pass
    else:
        known["CRC64NVME"] = ("CRC64NVME", lambda: _CRC(checksums.crc64nvme, 8))
        known["CRC32C"] = ("CRC32C", lambda: _CRC(checksums.crc32c, 4))
    known["CRC32"] = ("CRC32", lambda: _CRC(zlib.crc32, 4))
    return known


def _session_options(secret: Secret | None) -> dict[str, str]:
    """A secret as Truss has it: {"access_key_id", "secret_access_key", "region"}, perhaps with "session_token"."""
    if secret is None:
        return {}
    fields = secret.fields("access_key_id", "secret_access_key")
    options = {
        "aws_access_key_id": fields["access_key_id"],
        "aws_secret_access_key": fields["secret_access_key"],
        "aws_session_token": fields.get("session_token"),
        "region_name": fields.get("region"),
    }
    return {name: value for name, value in options.items() if value}
