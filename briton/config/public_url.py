"""What of a URL may be shown. The rest may be a password, a signature or a token."""

from __future__ import annotations

import re

_QUERY = re.compile(r"[?#]")


def public_url(text: str) -> str:
    """SCHEME://HOST/PATH of a URL: without user name, password, query and fragment. What is no URL is as it was."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    host, slash, path = _QUERY.split(rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
