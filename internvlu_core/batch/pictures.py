"""The pictures of a request: bytes, `data:` URIs, files, and, if they are allowed, URLs."""

import base64
import binascii
import io
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from ..checkpoints.files import check_regular
from ..errors import CheckpointError, InputError
from ..imaging import open_image

MAX_FILE_BYTES = 256 * 2**20
URL_SECONDS = 60  # for a whole download


def read_pictures(values, folder: Path, allow_urls: bool) -> list[Image.Image]:
    """The pictures of the column `images`: one or a list. folder: where paths start.

    Raises InputError if one cannot be read or is a URL that is not allowed.
    """
    values = values if isinstance(values, list | tuple) else [] if values is None else [values]
    return [_open(*read_bytes(value, folder, allow_urls)) for value in values]


def read_bytes(value, folder: Path, allow_urls: bool) -> tuple[bytes, str]:
    """(the bytes of a picture's file, its name for messages). value: as in read_pictures. Errors as there."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as Hugging Face's datasets write pictures
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value, "of the request"
    if not isinstance(value, str):
        raise InputError(f"an image must be a path, a data: URI or bytes, not {type(value).__name__}")
    scheme = urlsplit(value).scheme.lower() if "://" in value or value.startswith("data:") else ""
    if scheme == "data":
        return _read_data_uri(value), "of the request"
    if scheme:
        if scheme not in ("http", "https") or not allow_urls:
            hint = "give --allow-urls to download it" if scheme in ("http", "https") else "only http and https can be"
            raise InputError(f"the image {value} is a URL: {hint}")
        return _download(value), value
    return _read_file(folder / value), value


def _open(content: bytes, name: str) -> Image.Image:
    try:
        return open_image(io.BytesIO(content))
    except InputError as error:
        raise InputError(f"cannot read the image {name}: {error.__cause__ or error}") from error


def _read_file(path: Path) -> bytes:
    try:
        check_regular(path)  # opening a named pipe or a device can wait for ever
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (CheckpointError, OSError, ValueError) as error:
        raise InputError(f"cannot read the image: {error}") from error
    return _limited(content, str(path))


def _limited(content: bytes, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"the image {name} is larger than {MAX_FILE_BYTES >> 20} MB")
    return content


def _read_data_uri(uri: str) -> bytes:
    head, comma, data = uri.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        content = unquote_to_bytes(data)
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else content
    except (ValueError, binascii.Error) as error:
        raise InputError(f"an image is a damaged data: URI: {error}") from error


def _download(url: str) -> bytes:
    opener = urllib.request.OpenerDirector()  # with these handlers no redirection leads to a file or to FTP
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "internvlu-batch"})
    deadline, parts, size = time.monotonic() + URL_SECONDS, [], 0
    try:
        with opener.open(request, timeout=URL_SECONDS / 2) as answer:
            while size <= MAX_FILE_BYTES and (part := answer.read1(2**20)):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not there after {URL_SECONDS} s")
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise InputError(f"cannot download the image {url}: {error}") from error
    return _limited(b"".join(parts), url)
