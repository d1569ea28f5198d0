"""Send each request to a prefill server, and on to a decode server that fetches its KV cache.

    python router.py --port 8000 --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200

`--prefill` and `--decode` can be given several times: requests go round. Servers that do not
answer `/health` are left out until they do. Without a healthy prefill server, or when one fails,
the decode server computes the prompt itself; without a healthy decode server the answer is 503.

With `--push` both get the request at the same time, and the prefill server sends the KV cache layer
by layer while it computes it; the servers need `"mode": "push"`. The first request of each prefill
server is pulled, because its answer tells where the server's workers listen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import uuid

from aiohttp import ClientError, ClientSession, ClientTimeout, web

HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT = ClientTimeout(total=2)
REQUEST_TIMEOUT = ClientTimeout(total=None, sock_connect=5)
PATHS = ("/v1/completions", "/v1/chat/completions")
PASSED_ON = {"authorization", "x-request-id", "traceparent", "tracestate"}  # headers
PUSHED = {"ranks", "block_sizes"}  # of an answer, for push mode
BROKEN = (ClientError, asyncio.TimeoutError, OSError)

logger = logging.getLogger("router")


class Servers:
    """Servers of one kind; the healthy ones take turns."""

    def __init__(self, kind, urls):
        self.kind = kind
        self.urls = [url.rstrip("/") for url in urls]
        self.healthy = set()
        self._turns = itertools.count()

    def in_turn(self):
        """All healthy ones; each call begins with the next."""
        ready = [url for url in self.urls if url in self.healthy]
        start = next(self._turns) % len(ready) if ready else 0
        return ready[start:] + ready[:start]

    def note(self, url, is_healthy):
        if is_healthy != (url in self.healthy):
            logger.info("%s %s is %s", self.kind, url, "healthy" if is_healthy else "gone")
        (self.healthy.add if is_healthy else self.healthy.discard)(url)

    async def check(self, session):
        async def one(url):
            try:
                async with session.get(f"{url}/health", timeout=HEALTH_TIMEOUT) as answer:
                    self.note(url, answer.status == 200)
            except BROKEN:
                self.note(url, is_healthy=False)

        await asyncio.gather(*(one(url) for url in self.urls))


class Router:
    """Handles the requests of clients."""

    def __init__(self, prefill, decode, *, push=False):
        self.prefill = Servers("prefill", prefill)
        self.decode = Servers("decode", decode)
        self.push = push
        self.workers = {}  # prefill server -> what its answers say of its workers

    async def run(self, app):
        """Keep a session and check the servers' health, for as long as the application runs."""
        async with ClientSession(timeout=REQUEST_TIMEOUT) as self.session:
            await self.check_all()
            checks = asyncio.create_task(self.check_forever())
            yield
            checks.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await checks

    async def check_all(self):
        await asyncio.gather(*(kind.check(self.session) for kind in (self.prefill, self.decode)))

    async def check_forever(self):
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            await self.check_all()

    async def health(self, request):
        return web.json_response(
            {"prefill": self.prefill.in_turn(), "decode": self.decode.in_turn()},
            status=200 if self.decode.healthy else 503,
        )

    async def handle(self, request):
        """Prefill, then decode with what the prefill server returned; or both at once."""
        body = await request.json()
        headers = {
            name: value for name, value in request.headers.items() if name.lower() in PASSED_ON
        }
        if self.push:
            answer = await self.pushed(request.path, body, headers)
            if answer is not None:
                async with answer:
                    return await self.passed_on(request, answer)
        offer = await self.prefilled(request.path, body, headers)
        if offer is not None:
            body = {**body, "kv_transfer_params": offer}
        for url in self.decode.in_turn():
            try:
                answer = await self.session.post(url + request.path, json=body, headers=headers)
            except BROKEN as error:
                logger.warning("decode %s: %s", url, error)
                self.decode.note(url, is_healthy=False)
                continue
            async with answer:
                return await self.passed_on(request, answer)
        return web.json_response({"error": "no healthy decode server"}, status=503)

    async def pushed(self, path, body, headers):
        """Return the decode server's answer, or None if the request must be pulled."""
        prefill, decode = self.prefill.in_turn(), self.decode.in_turn()
        if not prefill or not decode or prefill[0] not in self.workers:
            return None
        transfer = {"transfer": uuid.uuid4().hex}
        meeting = {**transfer, "do_remote_prefill": True, **self.workers[prefill[0]]}
        full = {**body, "kv_transfer_params": meeting}
        sending = asyncio.create_task(self.ask_prefill(prefill[0], path, body, headers, transfer))
        answering = asyncio.create_task(
            self.session.post(decode[0] + path, json=full, headers=headers)
        )
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        failed = sending.done() and sending.result() is None
        if not failed:
            try:
                return await answering
            except BROKEN as error:
                logger.warning("decode %s: %s", decode[0], error)
                self.decode.note(decode[0], is_healthy=False)
        for task in (sending, answering):
            task.cancel()
        for answer in await asyncio.gather(sending, answering, return_exceptions=True):
            if hasattr(answer, "release"):
                answer.release()
        return None

    async def prefilled(self, path, body, headers):
        """Return a prefill server's offer of this request, or None."""
        for url in self.prefill.in_turn():
            offer = await self.ask_prefill(url, path, body, headers, {})
            if offer is not None:
                return offer or None
        return None

    async def ask_prefill(self, url, path, body, headers, params):
        """Return the server's kv_transfer_params, {} if it has none, or None if it failed."""
        short = {**body, "stream": False, "max_tokens": 1}
        short["kv_transfer_params"] = {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            **params,
        }
        short.pop("stream_options", None)
        short.pop("min_tokens", None)
        if "max_completion_tokens" in short:
            short["max_completion_tokens"] = 1
        try:
            async with self.session.post(url + path, json=short, headers=headers) as answer:
                if answer.status >= 500:
                    return None
                if answer.status != 200:
                    return {}  # the request is wrong: the decode server says why
                given = (await answer.json()).get("kv_transfer_params") or {}
        except BROKEN as error:
            logger.warning("prefill %s: %s", url, error)
            self.prefill.note(url, is_healthy=False)
            return None
        if "ranks" in given:
            self.workers[url] = {name: given[name] for name in PUSHED if name in given}
        return given

    async def passed_on(self, request, answer):
        """Stream the decode server's answer to the client."""
        response = web.StreamResponse(status=answer.status)
        response.content_type = answer.content_type
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--prefill", action="append", default=[], metavar="URL")
    parser.add_argument("--decode", action="append", required=True, metavar="URL")
    parser.add_argument("--push", action="store_true", help="send to both servers at once")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    router = Router(options.prefill, options.decode, push=options.push)
    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(router.run)
    app.router.add_get("/health", router.health)
    for path in PATHS:
        app.router.add_post(path, router.handle)
    web.run_app(app, host=options.host, port=options.port, print=None)


if __name__ == "__main__":
    main()
