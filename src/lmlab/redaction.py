"""Locations without their secrets, for everything that is shown or stored.

Access keys stand in URLs (`s3://KEY:SECRET@bucket/x`, `https://user:password@host`) and signatures in their queries.
What reads a file needs them; messages, logs, ids, recipes and reports do not.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

HIDDEN = "***"
T = TypeVar("T")

# Secrets of AWS may hold slashes, so that all up to the @ belongs to them, unless what follows the colon is a port.
# A name without a password is a token in many URLs; in those of Azure it is the container, and no secret.
# One with an @ of its own reaches up to the last @ before the path.
_USER_AND_PASSWORD = r"[^\s/@:'\"<>?#]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s@'\"<>]*@(?:[^\s/@'\"<>?#]*@)*"
_USER_INFO = re.compile(
    rf"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<secret>{_USER_AND_PASSWORD}|[^\s/@:'\"<>?#]+@)", re.IGNORECASE
)
_WITHOUT_SCHEME = re.compile(rf"(?<![\w:/])//{_USER_AND_PASSWORD}")
_ENCODED = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)%3A%2F%2F(?:(?!%2F)[^\s&'\"<>])*%40", re.IGNORECASE)
_CONTAINERS = {"abfs", "abfss", "wasb", "wasbs", "adl"}
_SECRET_NAME = (
    r"(?:[\w.-]*(?:token|secret|passw|pwd|credential|signature|apikey|api[_-]key|access[_-]?key|accessid|policy"
    r"|subscription[_-]?key|auth[_-]?key|account[_-]?key|pass[_-]?phrase)[\w.-]*"
    r"|x-(?:amz|goog|oss|obs|cos)-[\w-]+|sig|sas|key|auth|authorization|key-pair-id|session|sessionid|code|jwt"
    r"|hmac|pass|hdnts|hdntl)"
)
_PARAMETER = re.compile(rf"(?P<name>[?&;#]{_SECRET_NAME})=(?P<value>[^\s&;#'\"<>]+)", re.IGNORECASE)
# What else libraries of file systems put into their messages: options, headers, and keys whose form tells what they are
_OPTION = re.compile(
    r"(?P<name>['\"]?\b(?:secret|password|passwd|token|api_?key|aws_secret_access_key|aws_session_token|account_key"
    r"|client_secret|connection_string|sas_token)\b['\"]?\s*[=:]\s*)(?P<quote>['\"])(?P<value>.+?)(?P=quote)",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(  # as an environment, a connection string or a file of credentials has them, without quotes
    r"(?P<name>\b(?:[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)|(?:Account|SharedAccess)Key"
    r"|aws_secret_access_key|aws_session_token)\s?=\s?)(?P<value>[^\s;,'\"<>&]+)"
)
_AUTHORIZATION = re.compile(
    r"(?P<name>\bauthorization['\"]?: *['\"]?(?:\w+ +)?)(?P<value>[^\s'\",(){}]{8,})", re.IGNORECASE
)
_HEADER = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)(?P<value>[A-Za-z0-9+/._~=-]{16,})", re.IGNORECASE)
_KEY = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|AIza[\w-]{30,}|xox[abeoprs]-[\w-]{10,})\b"
)


def redact(text: str) -> str:
    """A text in which the secrets of every URL are replaced by `***`: user information, and the values of parameters
    that sign or open something. Redacting twice changes nothing."""
    if "%40" in text:
        text = _ENCODED.sub(rf"\g<scheme>%3A%2F%2F{HIDDEN}%40", text)
    if "//" in text or "?" in text:
        text = _WITHOUT_SCHEME.sub(f"//{HIDDEN}@", text)
        text = _USER_INFO.sub(_without_user, text)
        text = _PARAMETER.sub(rf"\g<name>={HIDDEN}", text)
    text = _OPTION.sub(rf"\g<name>\g<quote>{HIDDEN}\g<quote>", text)
    text = _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
    return _KEY.sub(HIDDEN, text)


def redact_all(value: T) -> T:
    """A JSON value in which every text, keys included, is redacted."""
    found: Any = value
    if isinstance(value, str):
        found = redact(value)
    elif isinstance(value, dict):
        found = {redact_all(key): redact_all(each) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(redact_all(each) for each in value)
    return found


def _without_user(match: re.Match[str]) -> str:
    if match["scheme"].lower() in _CONTAINERS and ":" not in match["secret"]:
        return match[0]
    return f"{match['scheme']}://{HIDDEN}@"
