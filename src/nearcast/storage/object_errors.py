"""What an error of an object store means: its status and code, whether another try may help, and the way out.

Works on the texts of the client's errors, which hold the status and the body of the reply. Knows no client.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["Fault", "read_fault"]

STATUS = re.compile(r"status code: (\d{3})|Status \{\s*status: (\d{3})")
CODE = re.compile(r"<Code>([^<]{1,80})</Code>")
PATH = re.compile(r'Path "([^"]*)"')
MESSAGE = re.compile(r"<Message>([^<]{1,300})")
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
METADATA = (
    "169.254.",
    "/latest/api/token",
    "/latest/meta-data",
    "computeMetadata",
    "metadata/identity",
    "token request",
)
MISSING_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "FilesystemNotFound")
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN); profiles in ~/.aws are not read: "
    "`aws configure export-credentials --format env` prints them",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a service principal",
}
ENDPOINT = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT",),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason of a failed operation."""

    text: str  # what was got, and the way out
    transient: bool  # the same request may succeed soon
    connection: bool = False  # no reply came
    missing_bucket: bool = False


def read_fault(error: BaseException, scheme: str, bucket: str) -> Fault:
    """Explain an error of the client."""
    whole = str(error)
    text = whole.partition("\n\nDebug source")[0]
    found = STATUS.search(text) or STATUS.search(whole)
    status = int(found[1] or found[2]) if found else None
    code = match[1] if (match := CODE.search(text)) else ""
    said = match[1] if (match := MESSAGE.search(text)) else ""
    got = " ".join(part for part in (f"status {status}" if status else "", code, said and f"({said})") if part)
    endpoint = _endpoint(scheme)
    if "object with invalid path" in text:
        name = match[1] if (match := PATH.search(text)) else "?"
        return Fault(
            f"there is an object {name!r}, whose name cannot be read: it has an empty part, `.` or `..`, or a "
            "control character; rename it, or name a folder without it",
            transient=False,
        )
    if any(mark in whole for mark in METADATA):
        return Fault(f"no credentials were found; {CREDENTIALS[scheme]}", transient=False)
    if any(mark in text for mark in MISSING_BUCKET):
        noun = "container" if scheme == "az" else "bucket"
        return Fault(
            f"the {noun} {bucket} does not exist{endpoint}; create it, or correct the URL, the region or the endpoint",
            transient=False,
            missing_bucket=True,
        )
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        return Fault(f"got {got}; the clock of this machine is wrong: set it", transient=False)
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return Fault(f"access was refused, got {got}; check the right to the bucket, or {CREDENTIALS[scheme]}", False)
    if status in (301, 307, 308) or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return Fault(f"got {got}: the bucket is in another region; set AWS_REGION", transient=False)
    if status == 501 or code == "NotImplemented":
        return Fault(f"got {got}: the server{endpoint} does not know this request; use another server", False)
    if "BadScheme" in whole:
        return Fault(f"the endpoint{endpoint} is not https; set AWS_ALLOW_HTTP=true to allow it", transient=False)
    if status in TRANSIENT or code in ("RequestTimeout", "SlowDown", "OperationAborted"):
        return Fault(f"the server failed, got {got}; try again later", transient=True)
    if status is not None:
        return Fault(f"got {got or text[:300]}; see the documentation of the server{endpoint}", transient=False)
    if "InvalidCertificate" in whole:
        return Fault(
            f"the certificate of the server{endpoint} is not trusted; set SSL_CERT_FILE to the certificate of its "
            "authority, or correct the endpoint",
            transient=False,
        )
    if "InvalidContentType" in whole:
        return Fault(
            f"the server{endpoint} speaks no https; write http:// in the endpoint, and set AWS_ALLOW_HTTP=true",
            transient=False,
        )
    if "HTTP error" in text or "Connect" in whole or "timed out" in whole or "TimedOut" in whole:
        why = " ".join(text.rpartition(" - ")[2].split())[:200]
        return Fault(
            f"the server{endpoint} cannot be reached or broke off ({why}); check the endpoint and the network",
            transient=True,
            connection=True,
        )
    if "must be specified" in text or "Missing" in whole:
        return Fault(f"got {text[:300]}; {CREDENTIALS[scheme]}", transient=False)
    return Fault(f"got {' '.join(text.split())[:300]}; check endpoint, credentials and network", transient=True)


def _endpoint(scheme: str) -> str:
    values = (os.environ.get(name) for name in ENDPOINT[scheme])
    return next((f" at {value}" for value in values if value), "")
