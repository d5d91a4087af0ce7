"""Redis over TLS with real certificates: a right one is taken, and every wrong one is an error that names its fault."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from pathlib import Path
from types import SimpleNamespace

import pytest

from nearcast.errors import StoreError
from nearcast.stores import open_store
from nearcast.stores.base import Pointer
from needs import require_module
from redis_groups import cluster_running
from servers import HERE, free_port, redis_running

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def write_authority(folder: Path, name: str) -> SimpleNamespace:
    """A certificate authority of our own: NAME.pem."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    authority = SimpleNamespace(key=key, name=name, folder=folder)
    _write(folder / f"{name}.pem", _certify(authority, name, key, authority=True))
    return authority


def write_certificate(authority: SimpleNamespace, name: str, host: str, start=NOW - DAY, end=NOW + DAY) -> list[str]:
    """A certificate for a host, signed by the authority, and its key, as settings of a server."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key, folder = ec.generate_private_key(ec.SECP256R1()), authority.folder
    _write(folder / f"{name}.pem", _certify(authority, host, key, start=start, end=end))
    pem = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)
    files = ["--tls-cert-file", folder / f"{name}.pem", "--tls-key-file", folder / f"{name}.key"]
    return list(map(str, [*files, "--tls-ca-cert-file", folder / f"{authority.name}.pem", "--tls-auth-clients", "no"]))


def _certify(issuer, host, key, *, authority=False, start=NOW - DAY, end=NOW + DAY):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    def named(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    names = [x509.DNSName(host)] if host != HERE else [x509.IPAddress(ipaddress.ip_address(HERE))]
    built = x509.CertificateBuilder().subject_name(named(host)).issuer_name(named(issuer.name))
    built = built.public_key(key.public_key()).serial_number(x509.random_serial_number())
    built = built.not_valid_before(start).not_valid_after(end)
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    return built.sign(issuer.key, hashes.SHA256())


def _write(path: Path, certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    path.write_bytes(certificate.public_bytes(Encoding.PEM))


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> SimpleNamespace:
    require_module("cryptography")
    folder = tmp_path_factory.mktemp("certificates")
    write_authority(folder, "stranger")
    return write_authority(folder, "ours")


@contextlib.contextmanager
def serving(folder: Path, settings: list[str]):
    """A Redis with TLS. Gives the end of its URL."""
    port = free_port()
    with redis_running(folder, "--tls-port", str(port), *settings):
        yield f"{HERE}:{port}/0?timeout=5"


def test_a_certificate_of_our_authority_is_taken(tmp_path, authority):
    with serving(tmp_path / "redis", write_certificate(authority, "right", HERE)) as place:
        for scheme in ("rediss", "valkeys"):
            store = open_store(f"{scheme}://{place}&ssl_ca_certs={authority.folder}/ours.pem")
            with store.lock("shop") as lock:
                store.point("shop", Pointer(1, 1), lock)
            assert store.generators() == ["shop"]
            store.close()


@pytest.mark.parametrize(
    ("name", "host", "start", "end", "ca", "told"),
    [
        ("stranger", HERE, -1, 1, "stranger", "is of an unknown authority; .*give its CA file as .ssl_ca_certs=PATH"),
        ("system", HERE, -1, 1, None, "is of an unknown authority; .*give its CA file as .ssl_ca_certs=PATH"),
        ("expired", HERE, -3, -1, "ours", "has expired; renew it on the server"),
        ("early", HERE, 1, 3, "ours", "is not valid yet; compare the clocks of both machines"),
        ("address", "cache.example", -1, 1, "ours", "does not name this address; give a host name of the certificate"),
        ("missing", HERE, -1, 1, "none", "a file of the URL is missing; check ssl_ca_certs"),
    ],
)
def test_a_wrong_certificate_is_an_error_that_names_its_fault(tmp_path, authority, name, host, start, end, ca, told):
    settings = write_certificate(authority, name, host, NOW + start * DAY, NOW + end * DAY)
    given = "" if ca is None else f"&ssl_ca_certs={authority.folder}/{ca}.pem"
    with serving(tmp_path / "redis", settings) as place:
        with pytest.raises(StoreError, match=rf"rediss://{HERE}:\d+/0 cannot be reached over TLS \(.*{told}"):
            open_store(f"rediss://{place}{given}")
        if name == "address":
            with pytest.raises(StoreError, match="is for another host; give a host name of the certificate"):
                open_store(f"rediss://{place.replace(HERE, 'localhost')}{given}")
            open_store(f"rediss://{place}{given}&ssl_check_hostname=false").close()


def test_a_server_that_wants_a_certificate_of_the_client_says_so(tmp_path, authority):
    settings = write_certificate(authority, "mutual", HERE)[:-1]
    with serving(tmp_path / "redis", [*settings, "yes"]) as place:
        url = f"rediss://{place}&ssl_ca_certs={authority.folder}/ours.pem"
        with pytest.raises(StoreError, match="give ssl_certfile and ssl_keyfile"):
            open_store(url)
        files = f"&ssl_certfile={authority.folder}/mutual.pem&ssl_keyfile={authority.folder}/mutual.key"
        open_store(url + files).close()


@pytest.mark.slow
def test_a_cluster_speaks_tls_and_its_errors_name_their_fault(tmp_path, authority):
    files = write_certificate(authority, "cluster", HERE)
    with cluster_running(tmp_path, *files, tls=True) as cluster:
        store = open_store(f"{cluster.tls_url}?ssl_ca_certs={authority.folder}/ours.pem&buckets=16")
        with store.lock("shop") as lock:
            store.point("shop", Pointer(1, 1), lock)
        assert store.generators() == ["shop"]
        store.close()
        with pytest.raises(StoreError, match=r"over TLS .*is of an unknown authority"):
            open_store(f"{cluster.tls_url}?ssl_ca_certs={authority.folder}/stranger.pem")
