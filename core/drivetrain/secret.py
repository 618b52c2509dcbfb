"""Tokens and passwords never reach a file, a log line or an error.

What is secret is known by the name that it has (`hub_token`, `api_key`, an environment variable `..._PASSWORD`), by its
form (`hf_...`, a password in an address), and by its value, once it has been seen under such a name: then it is struck
out wherever it turns up, in the middle of a string too.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

STRUCK = "<token>"

# Their ends: max_tokens and token_type are none. What a tokenizer calls tokens is none either.
_NAME = re.compile(
    r"(?<!pad)(?<!eos)(?<!bos)(?<!unk)(?<!cls)(?<!sep)(?<!mask)(?<!special)(?:^|[\W_]|(?<=[a-z0-9]))"
    r"(?:token|passwords?|passwd|passphrase|secrets?|(?:api|secret|access|private|auth)[-_]?keys?|credentials?|authorization)$",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"\b(?:hf|api_org|gh[pousr]|github_pat|sk|glpat|xox[abprs])[-_][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=://)(?:[^\s/@:\"'\\]*:[^\s/@\"'\\]+|[^\s/@:\"'\\]{16,})(?=@)"  # user:password@host, and token@host
    r"|(?<=[?&])(?:access_token|token|api_key|apikey|key|password|secret)=[^\s&\"'\\]+",
    re.IGNORECASE,
)
_SHORTEST = 8  # a shorter value would be struck out of ordinary words

_seen: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether what is called so is secret."""
    return _NAME.search(name) is not None


def learn(value: Any, name: str = "") -> None:
    """Remembers the strings in a value that have the name of a secret.

    Args:
        value: an argument, or a dictionary of options.
        name: what it is called.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            learn(item, str(key))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            learn(getattr(value, field.name, None), field.name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            learn(item, name)
    elif isinstance(value, str) and len(value) >= _SHORTEST and is_secret_name(name):
        _seen.add(value)


def struck(text: str) -> str:
    """A text with every secret struck out."""
    for secret in _known():
        if secret in text:
            text = text.replace(secret, STRUCK)
    return _FORMS.sub(STRUCK, text) if _FORMS.search(text) else text


def has_secret(text: str) -> bool:
    """Whether `struck` would change it."""
    return any(secret in text for secret in _known()) or _FORMS.search(text) is not None


def without_secrets(value: Any) -> Any:
    """A value of JSON with the secrets in its strings struck out, wherever they are; names are not looked at."""
    if isinstance(value, str):
        return struck(value)
    if isinstance(value, dict):
        return {struck(key): without_secrets(item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def _known() -> Iterator[str]:
    """Those of the arguments, and those of the environment as it is now; the longest first."""
    named = (value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_name(name))
    return iter(sorted({*_seen, *named}, key=len, reverse=True))


class Strike(logging.Filter):
    """Strikes secrets out of the lines of a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes, with its text as it may be read."""
        text = record.getMessage()
        clean = struck(text)
        if clean != text:
            record.msg, record.args = clean, None
        return True


def guard(logger: logging.Logger) -> None:
    """Has a logger's lines struck."""
    if not any(isinstance(found, Strike) for found in logger.filters):
        logger.addFilter(Strike())
