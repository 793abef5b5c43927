"""Where galleries and pictures are kept, to tell whether two of them are the same."""

from __future__ import annotations

import os
import re

from raycd.redact import without_passwords


def place(text: str) -> str:
    """Return a path or URL in one form, without what does not choose a file, folder or database:
    driver, user, password, the usual port, options.
    """
    scheme, of_url, rest = without_passwords(text).partition("://")
    if not of_url:
        return os.path.realpath(os.path.expanduser(text))
    scheme = scheme.partition("+")[0]
    if scheme == "file":
        return place(rest)
    if scheme in ("sqlite", "postgresql"):
        rest = rest.partition("?")[0]
    if scheme == "sqlite":  # sqlite:///relative, sqlite:////absolute
        return place(rest[1:])
    rest = re.sub(r"^[^/]*@", "", rest)
    if scheme == "postgresql":
        rest = re.sub(r"^([^/]*):5432(?=/|$)", r"\1", rest)
    return f"{scheme}://{rest.rstrip('/')}"
