"""Object stores on loopback: moto's S3 behind a proxy that can fail, and the few routes of GCS and AZURE that count."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import boto3
import google_crc32c
import pytest
from moto.server import ThreadedMotoServer

from tests.engine_builder.loopback import Reply, Request, serve

BUCKET = "models"
ACCOUNT = "devaccount"


class Bucket(ABC):
    """One bucket with objects, and what may go wrong with it."""

    source: str
    scheme: str

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.is_refused = False
        self.budget: int | None = None  # bytes of .safetensors that are sent before every connection breaks
        self.is_damaging = False  # the bytes are not those that the listing's checksums are of
        self.reads: list[tuple[str, int]] = []  # key and first byte of each download
        self.authorizations: list[str] = []

    def repo(self, path: str = "llama/tiny") -> str:
        """The spelling of a place in this bucket."""
        return f"{self.scheme}://{BUCKET}/{path}"

    def other_bucket(self) -> str:
        """The spelling of a bucket that is not there."""
        return f"{self.scheme}://nowhere/llama/tiny"

    def begins(self, name: str) -> list[int]:
        """Where the downloads of one file began."""
        return [begin for key, begin in self.reads if key.endswith(f"/{name}")]

    @abstractmethod
    def running(self, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
        """Serve it to whoever has the environment that this sets."""

    def cut(self, key: str, body: bytes) -> int | None:
        """After how many bytes of this answer the connection breaks."""
        if self.budget is None or not key.endswith(".safetensors"):
            return None
        sent = min(self.budget, len(body))
        self.budget -= sent
        return sent if sent < len(body) else None

    def content(self, key: str) -> bytes:
        """What is sent as an object's content."""
        data = self.objects[key]
        return bytes(len(data)) if self.is_damaging and key.endswith(".safetensors") else data

    def _children(self, prefix: str) -> list[str]:
        return [key for key in sorted(self.objects) if key.startswith(prefix) and "/" not in key[len(prefix) :]]


class S3Bucket(Bucket):
    """moto has the bucket; the proxy before it breaks connections and refuses."""

    source, scheme = "S3", "s3"

    def __init__(self) -> None:
        super().__init__()
        self._uploaded: dict[str, bytes] = {}
        self._moto = ""
        self._client: Any = None

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """See Bucket."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            self._moto = "http://{}:{}".format(*server.get_host_and_port())
            self._send("POST", "/moto-api/reset", {}, b"")
            keys = {"aws_access_key_id": "uploader", "aws_secret_access_key": "secret"}
            self._client = boto3.client("s3", region_name="us-east-1", endpoint_url=self._moto, **keys)
            self._client.create_bucket(Bucket=BUCKET)
            with serve(self.answer) as (url, _):
                monkeypatch.setenv("AWS_ENDPOINT_URL", url)
                yield
        finally:
            server.stop()

    def answer(self, request: Request) -> Reply:
        """moto's answer, or a failure."""
        self.authorizations.append(request.headers.get("authorization", ""))
        if self.is_refused:
            body = b"<Error><Code>AccessDenied</Code><Message>Access\nDenied</Message></Error>"
            return Reply(403, b"" if request.method == "HEAD" else body, {"Content-Type": "application/xml"})
        path = unquote(urlsplit(request.path).path)
        key = path.removeprefix(f"/{BUCKET}/")
        self._upload()
        status, headers, body = self._send(request.method, request.path, request.headers)
        if request.method == "GET" and key in self.objects:
            begin = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
            self.reads.append((key, begin))
            body = self.content(key)[begin:] if status == 206 else body
            return Reply(status, body, headers, self.cut(key, body))
        return Reply(status, body, headers)

    def allow_all(self) -> None:
        """Let everybody list and read."""
        everything = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
        statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": everything}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._client.put_bucket_policy(Bucket=BUCKET, Policy=policy)

    def _upload(self) -> None:
        """Bring moto's bucket to what `objects` says."""
        for key, data in self.objects.items():
            if self._uploaded.get(key) != data:
                self._client.put_object(Bucket=BUCKET, Key=key, Body=data, ChecksumAlgorithm="CRC64NVME")
                self._uploaded[key] = data

    def _send(
        self, method: str, path: str, headers: dict[str, str], data: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        kept = {name: value for name, value in headers.items() if name not in ("host", "connection")}
        request = urllib.request.Request(self._moto + path, data, kept, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                status, headers, body = answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, headers, body = error.code, dict(error.headers), error.read()
        for name in ("Connection", "Date", "Server"):
            headers.pop(name, None)
        return status, headers, body


class GCSBucket(Bucket):
    """The JSON API's listing and download: https://cloud.google.com/storage/docs/json_api/v1"""

    source, scheme = "GCS", "gs"

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """See Bucket."""
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        with serve(self.answer) as (url, _):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            yield

    def answer(self, request: Request) -> Reply:
        """The listing, or a range of an object."""
        self.authorizations.append(request.headers.get("authorization", ""))
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        bucket, _, key = url.path.partition("/b/")[2].partition("/o")
        if self.is_refused:
            return self._error(403, "someone does not have\nstorage.objects.list access")
        if bucket != BUCKET:
            return self._error(404, "The specified bucket does not exist.")
        if "/o" not in url.path:  # the library asks for the bucket's location, for its traces
            return Reply(200, json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"})
        if not key:
            items = [self._item(key) for key in self._children(query["prefix"])]
            return Reply(200, json.dumps({"items": items}).encode(), {"Content-Type": "application/json"})
        key = unquote(key[1:])
        if key not in self.objects or query["generation"] != self._generation(key):
            return self._error(404, f"No such object: {bucket}/{key}")
        begin, end = request.headers["range"].removeprefix("bytes=").split("-")
        self.reads.append((key, int(begin)))
        body = self.content(key)[int(begin) : int(end) + 1]
        headers = {"Content-Range": f"bytes {begin}-{int(begin) + len(body) - 1}/{len(self.objects[key])}"}
        return Reply(206, body, headers, self.cut(key, body))

    def _item(self, key: str) -> dict[str, str]:
        data = self.objects[key]
        crc32c = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        return {"name": key, "size": str(len(data)), "generation": self._generation(key), "crc32c": crc32c}

    def _generation(self, key: str) -> str:
        return str(int(hashlib.sha256(self.objects[key]).hexdigest()[:12], 16))

    def _error(self, status: int, message: str) -> Reply:
        body = json.dumps({"error": {"code": status, "message": message}}).encode()
        return Reply(status, body, {"Content-Type": "application/json"})


class AzureBucket(Bucket):
    """List Blobs and Get Blob: https://learn.microsoft.com/en-us/rest/api/storageservices/blob-service-rest-api"""

    source, scheme = "AZURE", "azure"
    url = ""

    def repo(self, path: str = "llama/tiny") -> str:
        """See Bucket."""
        return f"azure://{ACCOUNT}/{BUCKET}/{path}"

    def other_bucket(self) -> str:
        """See Bucket."""
        return f"azure://{ACCOUNT}/nowhere/llama/tiny"

    @contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """See Bucket."""
        with serve(self.answer) as (self.url, _):
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(self.url))
            yield

    def answer(self, request: Request) -> Reply:
        """The listing, or a range of a blob."""
        self.authorizations.append(request.headers.get("authorization", ""))
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        _, account, container, *parts = unquote(url.path).split("/")
        assert account == ACCOUNT
        if self.is_refused:
            return self._error(403, "AuthenticationFailed")
        if container != BUCKET:
            return self._error(404, "ContainerNotFound")
        if query.get("comp") == "list":
            blobs = "".join(self._blob(key) for key in self._children(query.get("prefix", "")))
            listing = (
                f'<?xml version="1.0"?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>'
            )
            return Reply(200, listing.encode(), {"Content-Type": "application/xml"})
        key = "/".join(parts)
        if key not in self.objects:
            return self._error(404, "BlobNotFound")
        etag = self._etag(key)
        if request.headers.get("if-match") != etag:
            return self._error(412, "ConditionNotMet")
        begin, end = request.headers["x-ms-range"].removeprefix("bytes=").split("-")
        self.reads.append((key, int(begin)))
        data = self.content(key)
        body = data[int(begin) : int(end) + 1]
        headers = {"Content-Range": f"bytes {begin}-{int(begin) + len(body) - 1}/{len(data)}", "ETag": etag}
        headers |= {"Content-Type": "application/octet-stream", "x-ms-blob-type": "BlockBlob"}
        return Reply(206, body, headers, self.cut(key, body))

    def _blob(self, key: str) -> str:
        data = self.objects[key]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        return (
            f"<Blob><Name>{escape(key)}</Name><Properties><Etag>{self._etag(key).strip(chr(34))}</Etag>"
            f"<Content-Length>{len(data)}</Content-Length><Content-MD5>{md5}</Content-MD5>"
            "<BlobType>BlockBlob</BlobType></Properties></Blob>"
        )

    def _etag(self, key: str) -> str:
        return f'"0x{hashlib.sha256(self.objects[key]).hexdigest()[:15].upper()}"'

    def _error(self, status: int, code: str) -> Reply:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>No.\nRequestId:1</Message></Error>'
        return Reply(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


def connection_string(url: str, account: str = ACCOUNT, key: bytes = b"key") -> str:
    """What a storage emulator is reached with."""
    encoded = base64.b64encode(key).decode()
    return f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={encoded};BlobEndpoint={url}/{account};"
