"""What the stores tell their vendors' libraries, and what they take from the answers, without a server."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import DefaultCredentialsError

from briton.config.enums import CheckpointSource
from briton.config.object_url import parse_object_url
from briton.errors import BuildError, ConfigError
from briton_engine_builder.sources import azure
from briton_engine_builder.sources.azure import AzureStore
from briton_engine_builder.sources.gcs import GCSStore
from briton_engine_builder.sources.remote import Secret
from briton_engine_builder.sources.s3 import S3Store, checksum_from
from tests.engine_builder.buckets import connection_string

DATA = b"123456789"
MD5_ETAG = f'"{hashlib.md5(DATA).hexdigest()}"'
S3 = parse_object_url(CheckpointSource.S3, "bucket/path")
GCS = parse_object_url(CheckpointSource.GCS, "bucket/path")
AZURE = parse_object_url(CheckpointSource.AZURE, "devaccount/container/path")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setattr(azure, "_RETRIES", {"retry_total": 0})
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def encoded(value: bytes) -> str:
    """As S3 spells checksums."""
    return base64.b64encode(value).decode()


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ({"ETag": MD5_ETAG}, "MD5"),
        ({"ETag": MD5_ETAG, "ServerSideEncryption": "AES256"}, "MD5"),
        ({"ETag": MD5_ETAG, "ServerSideEncryption": "aws:kms"}, None),
        ({"ETag": MD5_ETAG, "SSECustomerAlgorithm": "AES256"}, None),
        ({"ETag": '"0123456789abcdef0123456789abcdef-3"'}, None),
        ({"ETag": '"x-3"', "ChecksumCRC32": encoded(b"abcd") + "-3", "ChecksumType": "COMPOSITE"}, None),
        ({"ETag": '"x-3"', "ChecksumCRC32": encoded(zlib.crc32(DATA).to_bytes(4, "big"))}, "CRC32"),
        # the check values of https://reveng.sourceforge.io/crc-catalogue
        ({"ETag": '"x-3"', "ChecksumCRC32C": encoded(bytes.fromhex("e3069283"))}, "CRC32C"),
        ({"ChecksumCRC64NVME": encoded(bytes.fromhex("ae8b14860a799888")), "ChecksumType": "FULL_OBJECT"}, "CRC64NVME"),
        ({"ChecksumSHA1": encoded(hashlib.sha1(DATA).digest())}, "SHA-1"),
        ({"ChecksumSHA256": encoded(hashlib.sha256(DATA).digest()), "ChecksumCRC32": "AAAAAA=="}, "SHA-256"),
    ],
)
def test_checksums_of_s3(head: dict[str, Any], name: str | None) -> None:
    checksum = checksum_from(head)
    if name is None:
        assert checksum is None
        return
    assert checksum is not None
    assert checksum.name == name
    digest = checksum.new()
    digest.update(DATA[:4])
    digest.update(DATA[4:])
    assert digest.digest() == checksum.expected


def test_the_region_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"access_key_id": "a", "secret_access_key": "b"}
    assert S3Store(S3, Secret("s", json.dumps(fields)))._client.meta.region_name == "us-east-1"
    assert (
        S3Store(S3, Secret("s", json.dumps({**fields, "region": "eu-north-1"})))._client.meta.region_name
        == "eu-north-1"
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert S3Store(S3, None)._client.meta.region_name == "eu-west-1"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(BuildError, match=r"checkpoint_repository\.repo s3://bucket/path: ProfileNotFound: .*nobody"):
        S3Store(S3, None)


def test_the_key_of_a_service_account() -> None:
    private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    key = {
        "type": "service_account",
        "client_email": "a@b.example",
        "private_key": pem,
        "token_uri": "https://b.example",
    }
    store = GCSStore(GCS, Secret("gcs", json.dumps(key)))
    assert store._client._credentials.service_account_email == "a@b.example"
    with pytest.raises(ConfigError, match="the secret gcs is not the key of a service account") as caught:
        GCSStore(GCS, Secret("gcs", json.dumps({**key, "private_key": "hush"})))
    assert "hush" not in caught.value.message
    with pytest.raises(ConfigError, match="the secret gcs is not a JSON object with client_email and private_key"):
        GCSStore(GCS, Secret("gcs", "hf_token"))


def test_gcs_without_any_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is asked as one that all may read."""

    def nothing_found(*args: Any, **kwargs: Any) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", nothing_found)
    assert type(GCSStore(GCS, None)._client._credentials).__name__ == "AnonymousCredentials"


def test_the_credentials_of_azure() -> None:
    key = encoded(b"key")
    host = "https://devaccount.blob.core.windows.net/container"
    for secret in (json.dumps({"account_key": key}), json.dumps({"sas_token": "sv=1&sig=x"})):
        container = AzureStore(AZURE, Secret("azure", secret), connection_string("http://h", "other"))._container
        assert container.url.startswith(host)
        assert ("sig=x" in container.url) == ("sas_token" in secret)
    given = AzureStore(AZURE, Secret("azure", connection_string("http://here")), connection_string("http://there"))
    assert given._container.url == "http://here/devaccount/container"
    assert (
        AzureStore(AZURE, None, connection_string("http://there"))._container.url == "http://there/devaccount/container"
    )
    # the library looks for credentials when the first request is made
    found = AzureStore(AZURE, None, None)._container
    assert (found.url, type(found.credential).__name__) == (host, "DefaultAzureCredential")


def test_connection_strings_that_are_of_no_use() -> None:
    with pytest.raises(ConfigError, match="the connection string is of the account other"):
        AzureStore(AZURE, None, connection_string("http://h", "other"))
    with pytest.raises(
        BuildError, match=r"cannot fetch checkpoint_repository\.repo azure://devaccount/container/path: Val"
    ):
        AzureStore(AZURE, None, "hush")


def test_azure_without_any_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # the others ask the network
    with pytest.raises(
        BuildError, match=r"Azure refuses access \(no credentials\): check what runtime_secret_name names"
    ):
        AzureStore(AZURE, None, None).list_files()
