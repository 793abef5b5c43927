"""Passwords in URIs and folders of this machine, taken out of what others will read: messages,
reports, logs.
"""

from __future__ import annotations

import re

_FOLDERS = re.compile(
    r"(?:(?<![\w/.:~])|(?<=sqlite:///))~?(?:/[^\s/'\":;,()]+)*/(?=[^\s/'\":;,()])"
)
_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/]*@")
_PARAMETER = re.compile(r"://\S*[?&](?:ssl)?password=", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """postgresql://ann:secret@host/db -> postgresql://ann:***@host/db, wherever in `text` it
    stands.
    """
    return _PASSWORD.sub(r"\1***@", text)


def has_password(text: str) -> bool:
    """Tell whether a URI in `text` holds a password, before its host or as a parameter."""
    return bool(_PASSWORD.search(text) or _PARAMETER.search(text))


def without_paths(text: str) -> str:
    """/home/ann/runs/bundle -> bundle, wherever in `text` a path begins at the root. What a URI
    names stays.
    """
    return _FOLDERS.sub("", text)
