"""What a server must prove before it gets a prompt."""

from __future__ import annotations

import ssl
from pathlib import Path

from millstream._config import environment_ca
from millstream._errors import OptionValueError

__all__ = ["create_context"]


def create_context(verify: bool | str = True) -> ssl.SSLContext:
    """A context for TLS 1.2 and later that asks for HTTP/1.1. It takes some 10-20 ms to read the certificates.

    Args:
        verify: True: certificates are checked against those that the environment names (``SSL_CERT_FILE``,
            ``SSL_CERT_DIR``), else certifi's, as httpx does. A path: against those in this file or directory.
            False: anybody may answer.

    Raises:
        OptionValueError: there is no such file, or no certificates are in it.
    """
    context = _verifying_context(verify) if verify is not False else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _verifying_context(verify: bool | str) -> ssl.SSLContext:
    if isinstance(verify, str):
        directory = Path(verify).is_dir()
        return _trusting("verify", None if directory else verify, verify if directory else None)
    file, directory_name = environment_ca()
    if file or directory_name:
        return _trusting("SSL_CERT_FILE", file, None if file else directory_name)
    try:
        import certifi  # noqa: PLC0415 - httpx brings it; without it the system's certificates do as well
    except ImportError:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=certifi.where())


def _trusting(said_by: str, file: str | None, directory: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file, capath=directory)
    except OSError as error:  # an ssl.SSLError too: "no certificate or crl found"
        why = getattr(error, "strerror", None) or error
        raise OptionValueError(
            f"{said_by} must name a file of certificates (PEM); {file or directory!r}: {why}"
        ) from None
