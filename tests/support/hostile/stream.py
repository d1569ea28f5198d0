"""Connected sockets of a hostile peer, inside TLS or not, with exact receives."""

from __future__ import annotations

import contextlib
import socket
import ssl


def tls_context(files, *, accepting):
    """Return the TLS of an instance with these certificate files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepting else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files["tls_ca"])
    context.load_cert_chain(files["tls_cert"], files["tls_key"])
    return context


class Stream:
    """A socket whose MSG_WAITALL works inside TLS, too."""

    def __init__(self, sock):
        self.sock = sock

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def pending(self):
        return self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0

    def recv(self, size, flags=0):
        """Return up to `size` bytes, with MSG_WAITALL all of them unless the stream ends."""
        data = b""
        while len(data) < size:
            try:
                part = self.sock.recv(size - len(data))
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLWantReadError):
                    continue
                raise ConnectionResetError(f"{error}") from error
            if not part:
                break
            data += part
            if not flags & socket.MSG_WAITALL:
                break
        return data

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
