"""Fetching one file from the network, checked before anybody can see it."""

import http.client
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from jaxad.data.dataset import DataError


def download(
    url: str, destination: Path, *, verify: Callable[[Path], None], timeout: float = 30.0, max_bytes: int = 2**31
) -> None:
    """Fetch ``url`` to ``destination``; ``verify(file)`` raises if the content is not what it should be.

    The file appears under its name only when it is complete and verified: until then it lies beside it under another
    name, so an interrupted or refused download leaves nothing behind. ``timeout`` is in seconds without an answer.

    Raises ``DataError`` when the address cannot be reached, answers with more than ``max_bytes``, or the file cannot be
    stored, and whatever ``verify`` raises.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {destination.parent} ({error}); choose another one") from error
    partial = destination.with_name(f".{uuid.uuid4().hex}{destination.suffix}")
    try:
        try:
            _fetch(url, partial, timeout, max_bytes)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise DataError(
                f"could not fetch {url} ({error}); check the network, "
                f"or fetch the file elsewhere and put it at {destination}"
            ) from error
        verify(partial)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, path: Path, timeout: float, max_bytes: int) -> None:
    received = 0
    with urllib.request.urlopen(url, timeout=timeout) as answer, path.open("wb") as file:
        # urllib follows a redirection wherever it leads.
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise DataError(f"{url} was redirected to {answer.url}, which is not encrypted; fetch the file elsewhere")
        while piece := answer.read(2**20):
            received += len(piece)
            if received > max_bytes:
                raise DataError(
                    f"expected at most {max_bytes} bytes from {url}, got more; it cannot be the file asked for"
                )
            file.write(piece)
