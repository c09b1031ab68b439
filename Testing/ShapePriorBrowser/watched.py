"""The browser front-end with a window into its scene, for tests and benchmarks.

    python Testing/ShapePriorBrowser/watched.py

It serves what ``python -m ShapePriorBrowser --no-open`` serves, and ``/watch`` besides: what is in
the scene, and how long the server's event loop was held since the last look.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web
from ShapePriorBrowser.app import App
from ShapePriorSlicerLib.scene.annotations import definedPoints
from ShapePriorSlicerLib.server.backend import LocalBackend
from vtk.util.numpy_support import vtk_to_numpy

BEAT_SECONDS = 0.002


class Watch:
    """What cannot be seen in the page.

    Args:
        app: to look into.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._pauses: list[float] = []
        app.server.controller.on_server_bind.add(self._bind)

    def _bind(self, webServer: Any) -> None:
        webServer.app.router.add_get("/watch", self._look)

    async def beat(self) -> None:
        """Measure how late the event loop comes back, again and again."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            self._pauses.append(time.perf_counter() - began - BEAT_SECONDS)

    async def _look(self, request: web.Request) -> web.Response:
        pauses, self._pauses = self._pauses, []
        return web.json_response({"pauses": pauses, **self._scene()})

    def _scene(self) -> dict[str, Any]:
        session = self._app.session
        assert session is not None
        found = {row.view: definedPoints(row.node).tolist() for row in session.outlines()}
        node, mesh = session.model.node, None
        if node is not None and node.GetPolyData() is not None:
            data = node.GetPolyData()
            mesh = {
                "points": vtk_to_numpy(data.GetPoints().GetData()).tolist(),
                "triangles": vtk_to_numpy(data.GetPolys().GetConnectivityArray()).tolist(),
            }
        server = self._app.workspace.backend.pid
        return {
            "phase": session.status.phase,
            "outlines": found,
            "model": mesh,
            "server": server,
            "pose": self._pose(),
        }

    def _pose(self) -> Any:
        """Where the step of the search that is shown is, canonical frame -> RAS mm."""
        assert self._app.session is not None
        trajectory = self._app.session.trajectory
        return trajectory.place().tolist() if trajectory.isShown else None


async def main() -> None:
    """Serve the bundled case."""
    app = App(LocalBackend)
    watch = Watch(app)
    app.openExample()
    beating = asyncio.create_task(watch.beat())
    await app.serve(0, lambda address: print(address, flush=True))
    beating.cancel()


if __name__ == "__main__":
    asyncio.run(main())
