"""Removal of passwords in URIs and of local folders from messages, reports and logs."""

from __future__ import annotations

import re

_FOLDERS = re.compile(
    r"(?:(?<![\w/.:~])|(?<=sqlite:///))~?(?:/[^\s/'\":;,()]+)*/(?=[^\s/'\":;,()])"
)
_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/]*@")


def without_passwords(text: str) -> str:
    """Replace passwords: postgresql://ann:secret@host/db -> postgresql://ann:***@host/db."""
    return _PASSWORD.sub(r"\1***@", text)


def without_paths(text: str) -> str:
    """Shorten absolute paths to their last part: /home/ann/runs/bundle -> bundle.

    The path inside a URI stays.
    """
    return _FOLDERS.sub("", text)
