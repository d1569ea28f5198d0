"""Options of the connector, parsed from `kv_connector_extra_config`."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import msgspec

_WHERE = "kv_connector_extra_config"
_IGNORED = {"engine_id"}
"""Keys that routers or vLLM add; this connector ignores them."""


class ConnectorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the connector.

    Attributes:
        listen: "ip:port" on which a producer's workers accept links. Port 0 chooses one; with
            another port, rank r listens on port + r. Consumers must be able to reach the ip; they
            take address and port from a request's kv_transfer_params.
        secret: Shared secret of all engines; unset = env LLM_DATADIST_SECRET or the file that
            LLM_DATADIST_SECRET_FILE names, else no authentication.
        transfer_backend: Data path: "auto", "host", "tcp" or "nixl".
        checksum: "crc32c" compares received blocks with the producer's before they are used; "off".
        mode: "pull": the consumer fetches a finished prompt's blocks. "push": the producer also
            pushes those of requests that name a transfer, while it computes them.
        model_id: Name of the model in the compatibility check; unset = vLLM's model name, which
            is a path for local models and so may differ between hosts.
        hold_ms: How long a producer keeps a finished prompt's blocks for a consumer; in push mode
            also how long a consumer waits for a producer.
        lease_ms: How long a consumer that has leased blocks may be silent before the producer takes
            them back.
        transfer_timeout_ms: Time limit of one request's transfer, after which it is recomputed.
        link_timeout_ms: Time limit of linking to a producer.
        concurrent_loads: Requests that a consumer fetches at the same time.
    """

    listen: str = "127.0.0.1:0"
    secret: str | None = None
    transfer_backend: Literal["auto", "host", "tcp", "nixl"] = "auto"
    checksum: Literal["off", "crc32c"] = "off"
    mode: Literal["pull", "push"] = "pull"
    model_id: str | None = None
    hold_ms: int = 60_000
    lease_ms: int = 10_000
    transfer_timeout_ms: int = 5_000
    link_timeout_ms: int = 3_000
    concurrent_loads: int = 4

    def listen_address(self, rank: int) -> str:
        """Return the address on which the worker of `rank` listens."""
        ip, _, port = self.listen.rpartition(":")
        return f"{ip}:{int(port) + rank if int(port) else 0}"


def parse_extra_config(extra_config: dict[str, Any]) -> ConnectorOptions:
    """Parse and check `kv_connector_extra_config`.

    Raises:
        ValueError: An unknown key, a wrong type or a value out of range; the text names the key and
            says what to write.
    """
    known = {field.name: field for field in msgspec.structs.fields(ConnectorOptions)}
    given = {key: value for key, value in extra_config.items() if key not in _IGNORED}
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f'did you mean "{close[0]}"? ' if close else ""
            raise _bad(f'unknown key "{key}"; {hint}known keys: {", ".join(sorted(known))}')
    for key, value in given.items():
        try:
            msgspec.convert(value, known[key].type, strict=True)
        except msgspec.ValidationError as error:
            raise _bad(f'"{key}" is {value!r}: {error}; {_REMEDIES[key]}') from None
    options = msgspec.convert(given, ConnectorOptions, strict=True)
    _check_listen(options.listen)
    for key, (low, high) in _RANGES.items():
        if not low <= getattr(options, key) <= high:
            raise _bad(f'"{key}" is {getattr(options, key)}; {_REMEDIES[key]}')
    if options.lease_ms <= options.transfer_timeout_ms:
        raise _bad(
            f'"lease_ms" is {options.lease_ms} and "transfer_timeout_ms" is '
            f"{options.transfer_timeout_ms}; write a lease_ms above transfer_timeout_ms, so that "
            "no lease ends under a running transfer"
        )
    if options.secret == "":
        raise _bad(f'"secret" is ""; {_REMEDIES["secret"]}')
    return options


def _check_listen(listen: str) -> None:
    ip, colon, port = listen.rpartition(":")
    if not (ip and colon and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise _bad(f'"listen" is "{listen}"; {_REMEDIES["listen"]}')
    if ip in {"0.0.0.0", "[::]"}:
        raise _bad(
            f'"listen" is "{listen}", which tells consumers no address; write one of this host '
            "that they can reach"
        )


def _bad(problem: str) -> ValueError:
    return ValueError(f"{_WHERE}: {problem}")


_RANGES = {
    "hold_ms": (100, 3_600_000),
    "lease_ms": (100, 3_600_000),
    "transfer_timeout_ms": (10, 3_600_000),
    "link_timeout_ms": (10, 600_000),
    "concurrent_loads": (1, 64),
}

_REMEDIES = {
    "listen": 'write "ip:port", such as "192.0.2.7:0" (port 0 chooses one)',
    "secret": "write the text that all engines share, or leave it out",
    "transfer_backend": 'write "auto", "host", "tcp" or "nixl"',
    "checksum": 'write "off" or "crc32c"',
    "mode": 'write "pull" or "push"',
    "model_id": "write the same text on producers and consumers, or leave it out",
    **{
        key: f"write a whole number from {low} to {high}"
        + (" of milliseconds" if key.endswith("_ms") else "")
        for key, (low, high) in _RANGES.items()
    },
}
