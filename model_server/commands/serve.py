"""``shape-prior serve``: fits for 3D Slicer and other clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.terminal import Version, check_device
from model_server.threads import begin_with_few


def serve(
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 0,
    remote: Annotated[
        bool, typer.Option("--remote", help="Allow an interface other machines can reach.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a fit.")] = None,
    strength: Annotated[
        float, typer.Option(help="Of the prior, 0.01 to 100, for clients that name none.")
    ] = 1.0,
    watch_parent: Annotated[
        bool, typer.Option("--watch-parent", help="End when standard input is closed.")
    ] = False,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key (PEM).")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may connect; repeatable.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Serve on a Ray cluster at this address, or 'local'.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Of the server, with --ray.")] = 1,
    gpus: Annotated[float, typer.Option(help="For each replica, with --ray.")] = 0.0,
    max_sessions: Annotated[int, typer.Option(help="Clients at once.")] = 32,
    max_image_voxels: Annotated[
        int, typer.Option(min=1, help="Of the image that a client sends; it has 2 GB at most.")
    ] = 400_000_000,
    idle_minutes: Annotated[float, typer.Option(help="A silent client is closed then.")] = 60.0,
    version: Version = False,
) -> None:
    """Serve fits to 3D Slicer and other clients over WebSocket, on this machine by default.

    The token is read from SHAPE_PRIOR_TOKEN, or made up and printed.
    """
    if threads is not None:
        begin_with_few(threads)
    check_device(device)
    from model_server.priors.protocol import checked_strength
    from model_server.service.server import ServeOptions
    from model_server.service.server import serve as run_server
    from model_server.service.wire import Limits

    options = ServeOptions(
        host,
        port,
        remote,
        device,
        watch_parent,
        certificate,
        key,
        tuple(allow_origin or ()),
        Limits(
            sessions=max_sessions,
            image_voxels=max_image_voxels,
            idle_minutes=idle_minutes,
            prior_strength=checked_strength(strength),
        ),
    )
    if ray is None:
        run_server(options)
        return
    from model_server.service.cluster import ClusterOptions, serve_on_ray

    serve_on_ray(options, ClusterOptions(ray, replicas, float(threads or 1), gpus))
