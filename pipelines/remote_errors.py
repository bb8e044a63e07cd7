"""What the clients of storages raise, as errors of the operating system: each has exceptions of its own."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from fastselfie.errors import LocalError, UserError

_MISSING, _FORBIDDEN = (404, 410), (401, 403)  # status of an HTTP answer


@contextmanager
def as_os_error(what: str) -> Iterator[None]:
    """Whatever is raised about ``what`` is an OSError with a text; also a FileNotFoundError or PermissionError.

    Raises:
        LocalError: the server's certificate is not trusted; no other try would help.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        doubt = _doubt(error)
        if doubt:
            raise LocalError(
                f"the certificate of the server is not trusted ({doubt}): see to the address, or name the file with its"
                " authority's in SSL_CERT_FILE, for S3 in AWS_CA_BUNDLE"
            ) from error
        behind = _behind(error) if isinstance(error, FileNotFoundError) else None
        raise _translated(behind or error, what) from error


def _doubt(error: BaseException) -> str:
    """What is wrong with the server's certificate; empty where something else went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_message"):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return ""


def _behind(error: FileNotFoundError) -> BaseException | None:
    """What went wrong, if it is another thing: fsspec's HTTP client says of any failure that the file is missing."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return None if status in _MISSING else cause
    failed = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return cause if failed or type(cause).__module__.startswith("aiohttp") else None


def _translated(error: BaseException, what: str) -> OSError:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in _MISSING:
        return FileNotFoundError(errno.ENOENT, "No such file", what)
    if isinstance(status, int) and status >= 400:
        reason = f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
        return OSError(errno.EACCES if status in _FORBIDDEN else errno.EIO, reason)
    if isinstance(error, TimeoutError) or type(error).__name__ == "FSTimeoutError":
        return OSError(errno.ETIMEDOUT, "no answer in time")
    if isinstance(error, OSError):
        number = errno.EACCES if isinstance(error, PermissionError) else error.errno or errno.EIO
        if isinstance(error, ssl.SSLError):  # with numbers of its own
            number = errno.EIO
        return OSError(number, error.strerror or str(error) or type(error).__name__)
    kind = type(error).__name__  # botocore's, as NoCredentialsError, are no OSErrors
    return OSError(errno.EACCES if "Credential" in kind else errno.EIO, f"{kind}: {error}")
