"""How soon a newer request ends the running one, and how soon its own first surface is there.

    python Testing/benchmarks/service_superseding.py [--count 60]

A person drags on: each request comes at a random moment of the fit of the one before.
"""

from __future__ import annotations

import time

import numpy as np
from service_common import (
    Cancelled,
    Check,
    Client,
    Drawing,
    Finished,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.events import Progressed

MOST_SECONDS = 0.1  # until the older request is told to have ended
FIRST_SECONDS = 0.25
FIT_SECONDS = 0.6  # about what a fit takes that is let alone


def main() -> None:
    """Interrupt fit after fit."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=60, help="requests that come too early")
    chosen = arguments.parse_args()
    rng = np.random.default_rng(chosen.seed)
    drawing = Drawing(surfaces(chosen, 1)[0], rng)
    client = Client(local_backend(chosen))
    ended: list[float] = []
    first: list[float] = []
    try:
        client.connected()
        client.endOf(client.fit(chosen.prior, drawing.edit()))
        while len(ended) < chosen.count:
            older = client.fit(chosen.prior, drawing.edit())
            time.sleep(rng.uniform(0.05, FIT_SECONDS))
            began = time.perf_counter()
            newer = client.fit(chosen.prior, drawing.edit())
            for at, event in client.events():
                if isinstance(event, Cancelled) and event.request == older:
                    ended.append(at - began)
                if isinstance(event, Progressed | Finished) and event.request == newer:
                    first.append(at - began)
                    break
            tell(len(ended), chosen.count, f"{1000 * ended[-1]:.0f} ms" if ended else "")
            client.endOf(newer)
    finally:
        client.close()
    checks = [
        Check("older request ended after, median s", float(np.median(ended)), "≤", MOST_SECONDS),
        Check("older request ended after, 95 % s", float(np.percentile(ended, 95)), "≤",
              MOST_SECONDS),
        Check("first surface of the newer, median s", float(np.median(first)), "≤", FIRST_SECONDS),
    ]  # fmt: skip
    title = f"{chosen.prior}: {len(ended)} fits superseded"
    report(chosen, "service_superseding", title, checks, {"ended": ended, "first": first})


if __name__ == "__main__":
    main()
