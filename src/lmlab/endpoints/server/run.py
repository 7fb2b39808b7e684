"""The server's process: a socket, an event loop, and a clean end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.server.app import ServerConfig, create_app
from lmlab.endpoints.server.connections import BoundedProtocol
from lmlab.endpoints.server.embeddings import ServedEncoder, create_embeddings_app
from lmlab.errors import UserError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
_GRACE_S = 10  # for answers under way when the server is stopped; longer ones are cut off
_PROTOCOL: dict[str, Any] = {"http": BoundedProtocol, "ws": "none", "lifespan": "off"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    model: ServedModel | ServedEncoder,
    listener: socket.socket,
    config: ServerConfig | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a model until SIGINT or SIGTERM. Then requests under way have ten seconds to end; a second signal ends them
    at once.

    Arguments:
        listener: where requests come in (`bind`).
        ready: told the address once requests are taken.
    """
    try:
        _Server(model, listener, config, ready).run(sockets=[listener])
    finally:
        model.close()


@contextlib.contextmanager
def background(model: ServedModel | ServedEncoder, config: ServerConfig | None = None) -> Iterator[str]:
    """Serve a model from a thread, at a free port of the loopback; gives the address."""
    addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
    listener = bind("127.0.0.1", 0)
    server = _Server(model, listener, config, addresses.put)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="lmlab-server")
    thread.start()
    try:
        yield addresses.get(timeout=60)
    finally:
        server.should_exit = True
        thread.join()
        model.close()


class _Server(uvicorn.Server):
    def __init__(
        self,
        model: ServedModel | ServedEncoder,
        listener: socket.socket,
        config: ServerConfig | None,
        ready: Callable[[str], None] | None = None,
    ) -> None:
        app = create_app(model, config) if isinstance(model, ServedModel) else create_embeddings_app(model, config)
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", timeout_graceful_shutdown=_GRACE_S, server_header=False, **_PROTOCOL
            )
        )
        host, port = listener.getsockname()[:2]
        self._ready = ready
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, and do not raise it again at the end: to be stopped is how a server ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also tell that requests are taken."""
        await super().startup(sockets)
        if self._ready is not None:
            self._ready(self.address)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody can connect to it before a server listens.

    Arguments:
        port: 0 for any that is free.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"'{host}' is no address of this machine: {error.strerror}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise UserError(
            f"{host} port {port} cannot be used: {error.strerror}.",
            "Choose another one with --port; 0 takes any that is free.",
        ) from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def server_config(host: str, key_env: str | None, allow_anyone: bool) -> ServerConfig:
    """What is demanded of requests.

    Arguments:
        key_env: name of the environment variable that holds the key.
        allow_anyone: take requests without a key also from other machines.

    Raises:
        UserError: the variable is not set, or the server would be open to other machines without a key.
    """
    secret = None
    if key_env is not None:
        secret = os.environ.get(key_env, "").strip()
        if not secret:
            raise UserError(
                f"The environment variable {key_env} is not set; it should hold the key that requests must bring."
            )
    if secret is None and not is_loopback(host) and not allow_anyone:
        raise UserError(
            f"At {host} everybody who reaches this machine could use the model.",
            "Demand a key with --key-env NAME, or say --allow-anyone.",
        )
    return ServerConfig(secret, LOOPBACK_NAMES if is_loopback(host) else None)
