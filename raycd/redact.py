"""Passwords in URIs, taken out of what others will read: messages, reports, the MLflow record."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/]*@")


def without_passwords(text: str) -> str:
    """postgresql://ann:secret@host/db -> postgresql://ann:***@host/db, wherever in `text` it stands."""
    return _PASSWORD.sub(r"\1***@", text)
