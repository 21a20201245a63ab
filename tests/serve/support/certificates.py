"""Certificates for tests of TLS."""

from pathlib import Path

from ray._common.tls_utils import generate_self_signed_tls_certs


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes a certificate for localhost that is its own authority, and its key; returns the two files."""
    folder.mkdir()
    files = folder / "certificate.pem", folder / "key.pem"
    for file, text in zip(files, generate_self_signed_tls_certs(), strict=True):
        file.write_text(text)
    return files
