"""Running the app in a process of its own: where it listens, who may reach it, when it ends."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import secrets
import socket
import ssl
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from model_server import __version__
from model_server.errors import ShapePriorError
from model_server.service.wire import READY, TOKEN_VARIABLE, VERSION, Limits
from model_server.threads import begin_with_few

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says.

    Attributes:
        host: interface; loopback by default.
        port: 0 for a free one.
        remote: whether another interface than loopback was really meant.
        device: "auto", "cpu" or "cuda".
        watch_parent: end when standard input is closed, as it is when the parent dies.
        certificate, key: PEM files, for TLS.
        origins: web pages whose scripts may connect.
        limits: see there.
    """

    host: str = "127.0.0.1"
    port: int = 0
    remote: bool = False
    device: str = "auto"
    watch_parent: bool = False
    certificate: Path | None = None
    key: Path | None = None
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Whether an interface can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def chosen_token(options: ServeOptions, given: str | None) -> str:
    """The operator's token, or on loopback a random one.

    Raises:
        ShapePriorError: another interface without the flag for it or without a proper token.
    """
    if is_loopback(options.host):
        return given or secrets.token_urlsafe(24)
    if not options.remote:
        raise ShapePriorError(
            f"'{options.host}' can be reached from other machines.",
            "Add --remote if that is meant.",
            "not-loopback",
        )
    if not given or len(given) < SHORTEST_TOKEN:
        raise ShapePriorError(
            f"A server for other machines needs a token of at least {SHORTEST_TOKEN} characters.",
            f"Set the environment variable {TOKEN_VARIABLE}.",
            "no-token",
        )
    return given


def check_options(options: ServeOptions) -> None:
    """Refuse what a server cannot be started with, before it says that it is ready.

    Raises:
        ShapePriorError: no sessions at all, an idle time that is none, TLS files that are none.
    """
    limits = options.limits
    if limits.sessions < 1:
        raise ShapePriorError(
            f"A server for {limits.sessions} clients is of no use.",
            "Choose --max-sessions 1 or more.",
            "out-of-range",
        )
    if not 0.0 < limits.idle_minutes < float("inf"):
        raise ShapePriorError(
            f"A silent client cannot be closed after {limits.idle_minutes:g} minutes.",
            "Choose --idle-minutes above 0.",
            "out-of-range",
        )
    if options.certificate is not None:
        _check_tls(options.certificate, options.key)
    elif options.key is not None:
        raise ShapePriorError(
            "There is a key without a certificate.", "Add --certificate.", "bad-certificate"
        )


def _check_tls(certificate: Path, key: Path | None) -> None:
    """Load the files as the server will.

    Raises:
        ShapePriorError: one is missing, no PEM file, locked, or the key of another certificate.
    """
    for path in filter(None, (certificate, key)):
        if not path.is_file():
            raise ShapePriorError(f"There is no file '{path}'.", "Check the TLS files.", "no-file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # nobody is asked
    except (OSError, ValueError) as error:  # ssl's own are among them
        needed = f"'{key}' is not its unlocked key" if key else "it holds no key"
        raise ShapePriorError(
            f"'{certificate}' is no PEM certificate, or {needed}.",
            "Give --certificate and --key, both PEM, the key without a password.",
            "bad-certificate",
        ) from error


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ShapePriorError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ShapePriorError(
            f"Cannot listen on {host}:{port} ({error}).",
            "Choose another --port, or 0 for a free one.",
            "no-port",
        ) from error
    return listening


def serve(options: ServeOptions) -> None:
    """Serve until interrupted, or until the parent is gone.

    The line that starts with ``READY`` on standard output tells the port, and the token if this
    process made it up; it is written when requests are answered.

    Raises:
        ShapePriorError: see ``check_options``, ``chosen_token`` and ``bound_socket``.
    """
    begin_with_few()
    check_options(options)
    given = os.environ.pop(TOKEN_VARIABLE, None)
    token = chosen_token(options, given)
    listening = bound_socket(options.host, options.port)
    if options.watch_parent:
        threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    import uvicorn

    from model_server.service.app import ServerSettings, create_app

    settings = ServerSettings(token, options.device, options.limits, options.origins)
    app = create_app(settings, warm_up)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # A little above: what is barely too long is answered, not only closed.
        ws_max_size=options.limits.message_bytes + 2**16,
        ws_per_message_deflate=False,
        ws_max_queue=4,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        timeout_graceful_shutdown=2,
    )
    ready = {
        "host": options.host,
        "port": listening.getsockname()[1],
        "tls": options.certificate is not None,
        "pid": os.getpid(),
        "version": __version__,
        "protocol": VERSION,
        **({} if given else {"token": token}),
    }
    # The socket listens already: who connects on reading this waits for the accept at most.
    print(READY + json.dumps(ready), flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def warm_up() -> None:
    """Import what every fit needs, so that the first one does not wait for it.

    The server answers meanwhile: people draw before they fit.
    """
    import model_server.priors.dals
    import model_server.priors.pca  # noqa: F401


def _end_with_parent() -> None:
    """Standard input ends when the parent closes it or dies, however it dies."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)
