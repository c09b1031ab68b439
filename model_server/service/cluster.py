"""The same app under Ray Serve: several replicas, one for each device, behind one address.

A WebSocket stays with the replica that accepted it, so a session keeps its warm state.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_server import __version__
from model_server.errors import ShapePriorError
from model_server.service.server import ServeOptions, check_options, chosen_token
from model_server.service.wire import READY, TOKEN_VARIABLE, VERSION

if TYPE_CHECKING:
    from fastapi import FastAPI

LOCAL = "local"


@dataclass(frozen=True)
class ClusterOptions:
    """How the replicas are spread.

    Attributes:
        address: of a Ray cluster, or "local" to start one on this machine.
        replicas: processes; each has a compute thread of its own.
        cpus, gpus: that Ray sets aside for each.
    """

    address: str = LOCAL
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


def imported_ray() -> Any:
    """The ray module.

    Raises:
        ShapePriorError: it is not installed.
    """
    # Ray reports its use to its makers unless told not to; names of cases are nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ShapePriorError(
            "Ray is not installed.",
            "Install it with: pip install 'ray[serve]'",
            "no-ray",
        ) from error
    return ray


def deploy(options: ServeOptions, cluster: ClusterOptions, token: str) -> None:
    """Start the replicas and return when they answer.

    Args:
        options: interface, port, device and limits as without Ray.
        cluster: how many, and where.
        token: what clients have to know.

    Raises:
        ShapePriorError: no Ray.
    """
    ray = imported_ray()
    from ray import serve

    address = None if cluster.address == LOCAL else cluster.address
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=True)
    device, limits, origins = options.device, options.limits, options.origins

    def build() -> FastAPI:
        # Runs in each replica: the app holds a thread and cannot travel.
        from model_server.service.app import ServerSettings, create_app
        from model_server.service.server import warm_up

        return create_app(ServerSettings(token, device, limits, origins), warm_up)

    serve.start(http_options={"host": options.host, "port": options.port})
    replica = serve.deployment(
        serve.ingress(build)(),  # type: ignore[no-untyped-call]
        name="sessions",
        num_replicas=cluster.replicas,
        # An open WebSocket counts as a request for as long as it lasts.
        max_ongoing_requests=limits.sessions,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
    )
    serve.run(replica.bind(), name="shape-prior", route_prefix="/")


def serve_on_ray(options: ServeOptions, cluster: ClusterOptions) -> None:
    """Deploy, tell where, and stay until interrupted.

    Raises:
        ShapePriorError: no Ray, or an interface without a token (``chosen_token``).
    """
    check_options(options)
    if options.certificate is not None:
        raise ShapePriorError(
            "Ray's own proxy serves without TLS.",
            "Leave --certificate out, and put a proxy with TLS before it.",
            "no-tls",
        )
    if cluster.replicas < 1 or not 0.0 <= cluster.gpus < float("inf"):
        raise ShapePriorError(
            f"{cluster.replicas} replicas with {cluster.gpus:g} GPUs each cannot be started.",
            "Choose --replicas 1 or more and --gpus 0 or more.",
            "out-of-range",
        )
    given = os.environ.pop(TOKEN_VARIABLE, None)
    token = chosen_token(options, given)
    deploy(options, cluster, token)
    ready = {"host": options.host, "port": options.port, "tls": False, "pid": os.getpid()}
    ready |= {"version": __version__, "protocol": VERSION, "replicas": cluster.replicas}
    print(READY + json.dumps(ready | ({} if given else {"token": token})), flush=True)
    try:
        while True:
            time.sleep(3600.0)
    finally:
        from ray import serve

        serve.shutdown()
