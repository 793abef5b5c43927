"""A certificate authority and an https server on loopback that answers with whatever bytes a test
writes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

DAY = timedelta(days=1)


class Authority:
    """An authority that signs certificates; `trust()` is what a client needs to believe them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "raycd tests")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self._root = self._certificate(self._name, self._key.public_key(), DAY, (basic, True))

    def trust(self) -> ssl.SSLContext:
        pem = self._root.public_bytes(serialization.Encoding.PEM)
        return ssl.create_default_context(cadata=pem.decode())

    def server(self, host: str, valid: timedelta = DAY) -> ssl.SSLContext:
        """Return what a server needs to be `host`, which may be an address; a negative `valid` is
        how long it is expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            general: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            general = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([general])
        certificate = self._certificate(subject, key.public_key(), valid, (names, False))
        file = self._folder / f"{host.replace(':', '-')}{valid.days}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        valid: timedelta,
        extension: tuple[x509.ExtensionType, bool],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 9 * DAY)
            .not_valid_after(now + valid)
            .add_extension(extension[0], critical=extension[1])
            .sign(self._key, hashes.SHA256())
        )


@dataclass
class Server:
    """A server that runs: its port, its requests, and how many connections began and ended."""

    port: int = 0
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    ended: int = 0


@asynccontextmanager
async def serving(
    answer: bytes | Answer, tls: ssl.SSLContext | None, *, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Server]:
    """Give each connection `answer` after its request; without `tls` say nothing and wait for its
    end.
    """
    server = Server()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            if tls is None:
                await reader.read()
            else:
                server.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await say(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            server.ended += 1
            writer.close()

    async def say(writer: asyncio.StreamWriter) -> None:
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        else:
            await answer(writer)

    listening = await asyncio.start_server(meet, address, port, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
