"""Where galleries and pictures are kept, to tell whether two of them are the same."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlencode

from raycd.redact import without_passwords

_CHOOSING = ("host", "hostaddr", "port", "dbname", "service")


def place(text: str) -> str:
    """Return a path or URL in one form, without what does not choose a file, folder or database:
    driver, user, password, the usual port, options but those that libpq finds a database by.
    """
    scheme, of_url, rest = without_passwords(text).partition("://")
    if not of_url:
        return os.path.realpath(os.path.expanduser(text))
    scheme = scheme.partition("+")[0]
    if scheme == "file":
        return place(rest)
    if scheme == "sqlite":  # sqlite:///relative, sqlite:////absolute
        return place(rest.partition("?")[0][1:])
    rest, chosen = re.sub(r"^[^/]*@", "", rest), ""
    if scheme == "postgresql":
        rest, _, options = rest.partition("?")
        found = sorted(pair for pair in parse_qsl(options) if pair[0] in _CHOOSING)
        chosen = f"?{urlencode(found)}" if found else ""
        rest = re.sub(r"^([^/]*):5432(?=/|$)", r"\1", rest)
    return f"{scheme}://{rest.rstrip('/')}{chosen}"
