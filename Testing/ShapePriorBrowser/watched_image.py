"""The browser front-end on an image that a reader knows, for tests.

The reader takes no training: what is bright is the organ. One that searches step by step is tiny
and untrained. Their server is in this process.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from image_readers import ellipsoid_image, read_by_brightness, write_reader
from pose_readers import SHAPES, write_pose_reader
from served import Served
from ShapePriorBrowser.app import App
from watched import Watch

from model_server.imaging.reader import ImageReader
from model_server.io.volumes import image_from_array, write_image
from model_server.priors.registry import ZOO_VARIABLE

CENTER, RADII = np.array([-25.0, 10.0, 30.0]), np.array([7.0, 20.0, 8.0])


async def main(folder: Path) -> None:
    """Serve a volume with a bright organ."""
    image = ellipsoid_image(CENTER, RADII)
    write_reader(folder, image, CENTER)
    write_pose_reader(folder, image, CENTER, replace(SHAPES, steps=40))  # it need not be exact
    os.environ[ZOO_VARIABLE] = str(folder)
    ImageReader.read = read_by_brightness
    path = folder / "scan.nii.gz"
    write_image(path, image_from_array(image.array, image.ijk_to_ras))
    app = App(Served)
    Watch(app)
    app.open(path, "scan")
    await app.serve(0, lambda address: print(address, flush=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
