"""Removal of passwords in URIs and of local folders from messages, reports and logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FOLDERS = re.compile(
    r"(?:(?<![\w/.:~])|(?<=sqlite:///))~?(?:/[^\s/'\":;,()]+)*/(?=[^\s/'\":;,()])"
)
# A user may be an address, ann@corp
_DATABASE = r"\b(?:postgres(?:ql)?|mysql|mariadb|mssql|oracle|milvus)(?:\+\w+)?"
# To SQLAlchemy the password of a database is whatever stands before the first @; one with an @ is
# hidden whole, too, and ends at the last @ before a query
_OF_DATABASE = r"[^\s@]*@(?:[^\s?#]*@)?"
_PASSWORD = re.compile(rf"({_DATABASE}://[^\s/:]*:){_OF_DATABASE}|(://[^\s/:]*:)[^\s/]*@")
_LOGIN = re.compile(rf"{_DATABASE}://[^\s/:]*:{_OF_DATABASE}[^\s/]*|://[^\s/:]*:[^\s/]*@[^\s/]*")
_SIGNATURE = re.compile(
    r"([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid"
    r"|googleaccessid|(?:ssl)?password|(?:access_)?token|api_?key)=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"://\S*[?&](?:ssl)?password=", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Replace passwords, those in parameters and signatures of signed URLs included.

    postgresql://ann:secret@host/db -> postgresql://ann:***@host/db
    """
    return _SIGNATURE.sub(r"\1***", _PASSWORD.sub(r"\1\2***@", text))


def without_parameters(uri: str) -> str:
    """Return a URI without its passwords and its parameters, which may hold one of any name."""
    # In this order: a password may have a question mark
    return without_passwords(uri).partition("?")[0]


def json_without_passwords(value: Any) -> Any:
    """Replace the passwords in the texts of a JSON value: settings that are written down."""
    if isinstance(value, Mapping):
        return {key: json_without_passwords(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_without_passwords(each) for each in value]
    return without_passwords(value) if isinstance(value, str) else value


def logins(*uris: str) -> dict[str, str]:
    """Return the logins with a password in URIs, without it -> whole, to put it back later.

    {"://ann:***@host": "://ann:secret@host"}
    """
    found = (match[0] for uri in uris for match in _LOGIN.finditer(uri))
    return {without_passwords(login): login for login in found}


def has_password(text: str) -> bool:
    """Tell whether a URI in `text` holds a password, before its host or as a parameter."""
    return bool(_PASSWORD.search(text) or _PARAMETER.search(text))


def without_paths(text: str) -> str:
    """Shorten absolute paths to their last part: /home/ann/runs/bundle -> bundle.

    The path inside a URI stays.
    """
    return _FOLDERS.sub("", text)
