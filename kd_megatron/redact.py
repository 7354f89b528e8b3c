"""Keeps secrets out of what is printed and recorded: error messages, tracebacks, dry runs.

Nothing here reads or writes a secret on purpose; this is the last fence, for a token inside a URL, an option or an
error message of a library. What counts as secret: values of environment variables whose names say so, credentials
and signatures in URLs, authorisation headers, and tokens of a known shape.
"""

import os
import re
import sys
import traceback
from types import TracebackType

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|(^|_)AUTH($|_)", re.IGNORECASE
)
_NOT_SECRET = {"TOKENIZERS_PARALLELISM"}
_MIN_CHARACTERS = 8  # a shorter value is a word that occurs anywhere
_URL_PARAMETER = r"([?&][\w-]*(?:token|signature|secret|password|key|credential)[\w-]*=)[^&\s'\"]+"
_SHAPES = [
    (re.compile(r"(?<=://)[^/\s@]*(?=@)"), HIDDEN),  # https://user:password@host
    (re.compile(_URL_PARAMETER, re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),  # Hugging Face
    (re.compile(r"\b(?:gh[pousr]_|github_pat_)\w{20,}"), HIDDEN),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), HIDDEN),  # Amazon
]


def redact(text: str) -> str:
    """``text`` with every secret replaced by ``***``."""
    for secret in sorted(_secrets_of_environment(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def _secrets_of_environment() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and name not in _NOT_SECRET and len(value) >= _MIN_CHARACTERS
    }


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback on stderr as Python does, without secrets; for ``sys.excepthook``."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)
