"""Files in and out: a volume uploaded, a surface or labelmap downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import web

from model_server.errors import ShapePriorError

PIECE = 2**20
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha")


def suffixOf(name: str) -> str:
    """The suffix of a volume file, in lower case.

    Raises:
        ShapePriorError: it is none that can be opened.
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    raise ShapePriorError(
        f"'{name}' is no volume file.", f"Choose one of {', '.join(SUFFIXES)}.", "unreadable"
    )


class Exchange:
    """The two routes.

    Args:
        openVolume: takes an uploaded file and its name.
        save: writes the surface in a format into a folder and returns the file.
        tell: shows an error in the page.
    """

    def __init__(
        self,
        openVolume: Callable[[Path, str], None],
        save: Callable[[str, Path], Path],
        tell: Callable[[ShapePriorError], None],
    ) -> None:
        self._open, self._save, self._tell = openVolume, save, tell

    def routes(self) -> list[web.RouteDef]:
        """For the web server."""
        return [web.post("/upload", self._upload), web.get("/download/{form}", self._download)]

    async def _upload(self, request: web.Request) -> web.Response:
        name = Path(request.query.get("name", "")).name
        try:
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"volume{suffixOf(name)}"
                with path.open("wb") as file:
                    async for piece in request.content.iter_chunked(PIECE):
                        file.write(piece)
                self._open(path, name)
        except ShapePriorError as error:
            return self._refused(error)
        except OSError as error:
            return self._refused(_noRoom(f"'{name}'", error))
        return web.Response(text="opened")

    async def _download(self, request: web.Request) -> web.Response:
        try:
            with TemporaryDirectory() as folder:
                path = self._save(request.match_info["form"], Path(folder))
                content = path.read_bytes()
        except ShapePriorError as error:
            return self._refused(error)
        except OSError as error:
            return self._refused(_noRoom("The file", error))
        return web.Response(
            body=content,
            content_type="application/octet-stream",
            headers={"Content-Disposition": f'attachment; filename="{path.name}"'},
        )

    def _refused(self, error: ShapePriorError) -> web.Response:
        self._tell(error)
        return web.Response(status=409, text=str(error))


def _noRoom(name: str, error: OSError) -> ShapePriorError:
    return ShapePriorError(
        f"{name} cannot be kept for a moment on the server's disk ({error.strerror or error}).",
        "Make room in its folder for temporary files.",
        "unwritable",
    )
