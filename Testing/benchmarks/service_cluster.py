"""The service on a local Ray cluster: replicas, sticky sessions, the same answers as without.

    python Testing/benchmarks/service_cluster.py [--replicas 2] [--clients 4] [--prior NAME]

Every client fits the bundled example through Ray Serve; its surface is compared with the one of
the direct call. Needs the extra "cluster".
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "ShapePriorSlicer")]
os.environ["PYTHONPATH"] = str(ROOT)  # the replicas import the backend from this checkout

from common import RESULTS, show  # noqa: E402
from ShapePriorSlicerLib.server.backend import RemoteBackend  # noqa: E402
from ShapePriorSlicerLib.server.connection import Connection  # noqa: E402
from ShapePriorSlicerLib.server.events import Connected, Failed, Finished  # noqa: E402

from model_server.io.markups import read_annotations  # noqa: E402
from model_server.priors.protocol import FitSettings  # noqa: E402
from model_server.priors.registry import load_prior  # noqa: E402
from model_server.service.cluster import ClusterOptions, deploy  # noqa: E402
from model_server.service.server import ServeOptions  # noqa: E402

PORT = 8765
GIVE_UP = 300.0


def main() -> None:
    """Deploy, fit once with every client, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--prior", default="hippocampus-dals")
    chosen = parser.parse_args()
    files = sorted((ROOT / "Resources" / "example").glob("*.mrk.json"))
    observations = read_annotations(files, None, None)
    # Remeshing flips with the last digits, which depend on the number of threads.
    prior = load_prior(chosen.prior, "cpu")
    direct = list(prior.fit(observations, settings=FitSettings(remesh=False)))[-1].surface.points

    token = secrets.token_urlsafe(24)
    began = time.perf_counter()
    deploy(ServeOptions(port=PORT), ClusterOptions(replicas=chosen.replicas, cpus=0.5), token)
    deployed = time.perf_counter() - began
    clients = [Connection(RemoteBackend(f"127.0.0.1:{PORT}", token)) for _ in range(chosen.clients)]
    for client in clients:
        client.fit(chosen.prior, observations, {"remesh": False})
    sessions: list[int | None] = [None] * len(clients)
    rows: dict[int, list[str]] = {}
    until = time.perf_counter() + GIVE_UP
    while len(rows) < len(clients) and time.perf_counter() < until:
        for index, client in enumerate(clients):
            for event in client.drain(0.01):
                if isinstance(event, Connected):
                    sessions[index] = event.session
                if isinstance(event, Failed):
                    rows[index] = [str(index), event.code, "", ""]
                if isinstance(event, Finished):
                    points = event.reconstruction.surface.points
                    gap = float(np.abs(points - direct).max())
                    rows[index] = [
                        str(index), str(sessions[index]), f"{event.seconds:.2f}", f"{gap:.1e}",
                    ]  # fmt: skip
    for client in clients:
        client.close()
    from ray import serve

    serve.shutdown()
    header = ["client", "session of its replica", "seconds", "largest difference mm"]
    title = f"{chosen.replicas} replicas on a local Ray cluster, up in {deployed:.0f} s"
    RESULTS.mkdir(exist_ok=True)
    show(title, header, [rows[i] for i in sorted(rows)], RESULTS / "service_cluster.md")
    content = {"deployed_seconds": deployed, "replicas": chosen.replicas, "rows": rows}
    (RESULTS / "service_cluster.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
