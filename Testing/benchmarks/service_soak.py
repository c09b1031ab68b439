"""Many edits in one session: what grows.

    python Testing/benchmarks/service_soak.py [--count 1000]

Everything is counted after a tenth of the edits, when caches are filled, and after the last; of
this process also before the session and after its end.
"""

from __future__ import annotations

import numpy as np
import psutil
from service_common import (
    Check,
    Client,
    Drawing,
    Finished,
    Footprint,
    growth,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)

MOST_GROWTH = 3.0


def main() -> None:
    """Edit, and look what is left behind."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=1000, help="edits")
    chosen = arguments.parse_args()
    drawing = Drawing(surfaces(chosen, 1)[0], np.random.default_rng(chosen.seed))
    backend = local_backend(chosen)
    alone = Footprint.of()
    connection = Client(backend)
    every = max(1, chosen.count // 10)
    lost, rows = 0, []
    try:
        connection.connected()
        for done in range(1, chosen.count + 1):
            ended = connection.endOf(connection.fit(chosen.prior, drawing.edit()))
            lost += not isinstance(ended, Finished)
            if done % every == 0:
                rows.append((done, Footprint.of(backend.pid), Footprint.of()))
                tell(done, chosen.count, f"{rows[-1][1].memory_mb:.0f} MB")
        server_process = psutil.Process(backend.pid)
    finally:
        connection.close()
    left = Footprint.of()
    (_, server, client), (_, server_end, client_end) = rows[0], rows[-1]
    checks = [
        Check("memory of the server, growth %", growth(server.memory_mb, server_end.memory_mb),
              "≤", MOST_GROWTH),
        Check("memory of the client, growth %", growth(client.memory_mb, client_end.memory_mb),
              "≤", MOST_GROWTH),
        Check("edits without a result", lost, "≤", 0),
    ]  # fmt: skip
    for what in ("threads", "files", "sockets"):
        for name, before, after in (("server", server, server_end), ("client", client, client_end)):
            more = getattr(after, what) - getattr(before, what)
            checks.append(Check(f"more {what} in the {name}", more, "≤", 0))
    for what in ("threads", "files", "sockets"):
        more = getattr(left, what) - getattr(alone, what)
        checks.append(Check(f"more {what} in the client after the session", more, "≤", 0))
    checks.append(Check("servers left after the session", server_process.is_running(), "≤", 0))
    data = {
        "footprints": [
            {"edits": done, "server": vars(one), "client": vars(other)} for done, one, other in rows
        ]
    }
    title = f"{chosen.prior}: {chosen.count} edits in one session"
    report(chosen, "service_soak", title, checks, data)


if __name__ == "__main__":
    main()
