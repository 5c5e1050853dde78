"""The certificates that key sources use: whether they can be read, and when they expire."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from tdefs.doctor.findings import Finding, advice, risk
from tdefs.keys.sources.base import Certificate, KeySource
from tdefs.keys.sources.tls_files import read_certificates
from tdefs.private import read_regular

#: For how long before it expires there is advice.
SOON = timedelta(days=30)
#: A file with more certificates is the list that a system trusts: some of these have always expired.
MOST_CERTIFICATES = 20
_MOST_BYTES = 1 << 20


def examine_certificates(name: str, source: KeySource, now: datetime) -> Iterator[Finding]:
    """Yield what is wrong, or will be soon, with the certificate files of the key source *name*."""
    for certificate in source.certificates():
        what = f'key source "{name}": {certificate.role} {certificate.path}'
        try:
            found = read_certificates(read_regular(certificate.path, _MOST_BYTES))
        except OSError as error:
            yield _unreadable(what, error.strerror or str(error))
        except ValueError:
            yield _unreadable(what, "it holds no certificate in PEM")
        else:
            for one in found if len(found) <= MOST_CERTIFICATES else ():
                # a file may hold a chain, or several authorities
                text = what if len(found) == 1 else f"{what}: {one.subject.rfc4514_string()}"
                yield from _expiry(text, certificate, one.not_valid_after_utc, now)


def _unreadable(what: str, reason: str) -> Finding:
    return risk(
        f"{what} cannot be read: {reason}", "the next unlock fails: put the file there, and check its rights"
    )


def _expiry(what: str, certificate: Certificate, end: datetime, now: datetime) -> Iterator[Finding]:
    hint = f"get a new {certificate.role}, and replace the file; no restart is needed"
    if end <= now:
        yield risk(f"{what} expired on {end:%Y-%m-%d}: the next unlock may fail", hint)
    elif end <= now + SOON:
        yield advice(f"{what} expires on {end:%Y-%m-%d}, in {(end - now).days} days", hint)
