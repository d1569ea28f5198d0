"""Command `llm-datadist ping`: links to a peer, and measures how long it takes to answer."""

from __future__ import annotations

import json
import math
from time import monotonic, sleep
from typing import Annotated, Any

import typer

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.cli.instances import (
    CaOption,
    CertOption,
    FirstGenerationOption,
    KeyOption,
    SecretFileOption,
    TimeoutOption,
    credentials_in_environment,
    linked,
)

__all__ = ["ping"]

_LATE = {LLMStatusCode.LLM_TIMEOUT, LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT}


def ping(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the peer listens.")],
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="Number of pings.")] = 10,
    interval: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds between two pings.")
    ] = 0.1,
    timeout: TimeoutOption = 5.0,
    first_generation: FirstGenerationOption = False,
    secret_file: SecretFileOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Link to a peer, show by which path blocks would move, and time its answers.

    The control thread of the peer answers, in Python: a ping also shows how busy its interpreter
    is. Transfers do not need that.

    Exit status: 0 every ping was answered, 1 not.
    """
    with credentials_in_environment(secret_file, tls_cert, tls_key, tls_ca):
        result = _pinged(address, count, interval, timeout, first_generation=first_generation)
    typer.echo(json.dumps(result) if as_json else _text(result))
    if result["problem"]:
        raise typer.Exit(1)


def _pinged(
    address: str, count: int, interval_s: float, timeout_s: float, *, first_generation: bool
) -> dict[str, Any]:
    """Return the facts of the link, and of its pings."""
    result: dict[str, Any] = {"peer": address, "cluster_id": None, "sent": 0, "lost": 0}
    times_ms: list[float] = []
    failed = ""
    try:
        with linked(address, timeout_s=timeout_s, first_generation=first_generation) as made:
            instance, cluster_id, link_ms = made
            result |= {"cluster_id": cluster_id, "link_ms": round(link_ms, 3)}
            link = instance.describe_link(cluster_id)
            result |= {name: link[name] for name in ("backend", "why", "encrypted")}
            for number in range(count):
                sleep(interval_s if number else 0.0)
                result["sent"] += 1
                started = monotonic()
                try:
                    instance.check_link_status(cluster_id)
                    times_ms.append((monotonic() - started) * 1000)
                except LLMException as error:
                    result["lost"] += 1
                    failed = str(error)
                    if error.status_code not in _LATE:
                        break
    except (LLMException, ValueError) as error:
        failed = str(error)
    return result | {"rtt_ms": _summary(times_ms), "problem": failed}


def _summary(times_ms: list[float]) -> dict[str, float] | None:
    """Return minimum, median and 99th percentile (nearest ranks), None without any."""
    if not times_ms:
        return None
    ordered = sorted(times_ms)

    def rank(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 4)

    return {"min": round(ordered[0], 4), "median": rank(0.5), "p99": rank(0.99)}


def _text(result: dict[str, Any]) -> str:
    lines = []
    if result["cluster_id"] is not None:
        why = "; ".join(f"{name}: {reason}" for name, reason in result["why"].items())
        lines.append(
            f"linked to cluster {result['cluster_id']} at {result['peer']} in "
            f"{result['link_ms']:.1f} ms, encrypted: {result['encrypted']}"
        )
        lines.append(f"blocks move over {result['backend']['host']} ({why})")
    if (rtt := result["rtt_ms"]) is not None:
        times = ", ".join(f"{name} {value:.3f}" for name, value in rtt.items())
        lines.append(f"{result['sent']} pings, {result['lost']} lost: {times} ms")
    if result["problem"]:
        lines.append(result["problem"])
    return "\n".join(lines)
