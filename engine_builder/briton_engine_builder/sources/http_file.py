"""One file at an http:// or https:// URL, for `download`. Only the standard library; proxies are the environment's."""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from pydantic import SecretStr

from briton import __version__
from briton.errors import BuildError
from briton_engine_builder.sources.remote import (
    CHUNK,
    CannotResume,
    Checksum,
    RemoteFile,
    Unreachable,
    describe,
    one_line,
)

_TIMEOUT_S = 60  # without a byte
_HEADERS = {"User-Agent": f"briton/{__version__}", "Accept-Encoding": "identity"}


class HTTPFile:
    """RemoteFiles of one file. `public_url` is what errors say; `token` is sent to the URL's host, not to redirects.

    The one place where the secret of a URL is opened.
    """

    def __init__(self, url: SecretStr, public_url: str, token: str | None) -> None:
        self._url, self._public_url, self._token = url, public_url, token

    def look(self, name: str) -> RemoteFile:
        """What the server says of the file before it is fetched, to be called `name` here. Raises BuildError."""
        with self._open({}) as answer:  # not HEAD, which a signed URL does not allow
            headers = answer.headers
            size = headers.get("Content-Length", "")
            etag = headers.get("ETag", "")
            # a weak ETag, W/"...", is not that of the very bytes
            version = etag if etag.startswith('"') else headers.get("Last-Modified", "")
            size_is_known = size.isdecimal() and "Transfer-Encoding" not in headers
            return RemoteFile(
                self._public_url,
                name,
                int(size) if size_is_known else None,
                version,
                describe(self._public_url),
                _checksum(headers),
            )

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        """See RemoteFiles."""
        headers = {"Range": f"bytes={begin}-", "If-Range": file.version} if begin else {}
        if begin and not file.version:
            raise CannotResume
        with self._open(headers) as answer:
            if begin and (
                answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
            ):
                raise CannotResume  # no ranges here, or another file by now
            while data := self._chunk(answer):
                yield data

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """See RemoteFiles."""
        return file.checksum

    def _chunk(self, answer: http.client.HTTPResponse) -> bytes:
        with self._one_line_errors():
            return answer.read(CHUNK)

    def _open(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(self._url.get_secret_value(), headers={**_HEADERS, **headers})
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        with self._one_line_errors(is_resuming="Range" in headers):
            opener = urllib.request.build_opener(_Redirects(where=describe(self._public_url)))
            answer: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
            return answer

    @contextmanager
    def _one_line_errors(self, *, is_resuming: bool = False) -> Iterator[None]:
        """Whatever urllib raises, as a BuildError that names the URL without what may be secret in it."""
        where = describe(self._public_url)
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and is_resuming:
                raise CannotResume from None
            if error.code in (401, 403):
                raise BuildError(
                    f"{where}: the server refuses access ({error.code}): a signed URL may have expired, "
                    "a token is given with runtime_secret_name"
                ) from None
            if error.code in (404, 410):
                raise BuildError(f"{where}: there is nothing at this URL ({error.code})") from None
            is_busy = error.code in (408, 429) or error.code >= 500
            raise (Unreachable if is_busy else BuildError)(
                f"cannot fetch {where}: the server answers {error.code}"
            ) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, http.client.InvalidURL):  # which shows what may be a signature
                raise BuildError(f"{where}: the server redirects to what is no URL") from None
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            text = one_line(reason) if isinstance(reason, BaseException) else reason
            raise Unreachable(f"cannot fetch {where}: {text}") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTP and HTTPS alone, and never from the second to the first."""

    def __init__(self, where: str) -> None:
        self._where = where

    def redirect_request(
        self, request: urllib.request.Request, answer: IO[bytes], *told: Any
    ) -> urllib.request.Request | None:
        """The request that a redirect leads to. Raises BuildError."""
        redirected = super().redirect_request(request, answer, *told)
        if redirected is not None and redirected.type not in ("https", request.type):
            answer.close()
            raise BuildError(f"{self._where}: the server redirects from {request.type} to {redirected.type}")
        return redirected


def _checksum(headers: http.client.HTTPMessage) -> Checksum | None:
    """Of the whole file: Content-MD5, or what GCS sends: x-goog-hash: crc32c=...,md5=..."""
    pairs = (part.strip().partition("=") for value in headers.get_all("x-goog-hash", []) for part in value.split(","))
    encoded = headers.get("Content-MD5") or {name: value for name, _, value in pairs}.get("md5", "")
    try:
        md5 = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Checksum("MD5", md5, hashlib.md5) if len(md5) == hashlib.md5().digest_size else None
