"""``python -m ShapePriorBrowser``: start the server and open the browser."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import webbrowser
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.threads import begin_with_few

from .rendering import requireRendering


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ShapePriorBrowser",
        description="Organ surfaces from sparse annotations, in the browser on this machine.",
    )
    parser.add_argument("--volume", type=Path, help="to open; default: the bundled case")
    parser.add_argument("--port", type=int, default=0, help="to listen on; default: a free one")
    parser.add_argument("--no-open", action="store_true", help="only print the address")
    return parser.parse_args()


def ready(address: str, openIt: bool) -> None:
    """Tell the address; open it."""
    print(f"ShapePriorSlicer: {address}", flush=True)
    print("The address works once, on this machine only. Ctrl+C ends.", flush=True)
    if openIt:
        webbrowser.open(address)


async def run(chosen: argparse.Namespace) -> None:
    """Build the application and serve it.

    Raises:
        ShapePriorError: packages are missing, the volume cannot be read, or the port not used.
    """
    try:
        from ShapePriorSlicerLib.server.backend import LocalBackend

        from .app import App
    except ImportError as error:
        raise ShapePriorError(
            f"{error.name} is not installed.",
            "In the checkout, run: python Resources/set_up.py browser",
            "no-package",
        ) from error
    app = App(LocalBackend)
    if chosen.volume is None:
        app.openExample()
    else:
        app.open(chosen.volume, chosen.volume.name)
    try:
        await app.serve(chosen.port, lambda address: ready(address, not chosen.no_open))
    except OSError as error:
        raise ShapePriorError(
            f"Port {chosen.port} cannot be used; another program may listen there.",
            "Choose another with --port, or none for a free one.",
            "no-port",
        ) from error


def main() -> int:
    """Run until Ctrl+C; 2 where something can be mended by the user."""
    chosen = arguments()
    # trame reads the command line itself; it is not meant.
    sys.argv = sys.argv[:1]
    os.environ.pop("TRAME_ARGS", None)
    begin_with_few()  # before anything that computes is imported
    try:
        requireRendering()
        asyncio.run(run(chosen))
    except ShapePriorError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):  # the latter is how the web server ends
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
