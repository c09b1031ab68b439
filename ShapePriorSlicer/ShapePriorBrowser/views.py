"""Three slice views and one 3D view, drawn here and sent to the browser as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ShapePriorSlicerLib.scene.cameras import fitCameras
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3
from trame_slicer.app.logic import connect_slice_view_slider_to_state
from trame_slicer.core import SlicerApp
from trame_slicer.rca_view import RemoteSliceViewFactory, RemoteThreeDViewFactory
from trame_slicer.views import AbstractView, SliceView, ViewLayoutDefinition
from vtkmodules.vtkCommonCore import vtkCommand, vtkObject

Node = Any

# Pictures a second of the view under the mouse, of the other slices, and of the 3D view, which
# takes software rendering several times as long.
FRAMES, SLICE_FRAMES, SPACE_FRAMES = 30.0, 15.0, 5.0
# JPEG quality while something moves; a moment later the picture comes again at 90.
MOVING_QUALITY = 75


@dataclass(frozen=True)
class SliceStyle:
    """How a slice view is called and colored, as in the desktop.

    Attributes:
        negative, positive: what lies at offsets below and above 0.
    """

    name: str
    orientation: str
    color: str
    negative: str
    positive: str


SLICES = (
    SliceStyle("Red", "Axial", "#F34A33", "I", "S"),
    SliceStyle("Green", "Coronal", "#6DB33F", "P", "A"),
    SliceStyle("Yellow", "Sagittal", "#EDD54C", "R", "L"),
)
THREE_D = "ThreeD"


class Views:
    """The views of one scene.

    Args:
        server: trame server.
        slicer: scene and logics.
    """

    def __init__(self, server: Any, slicer: SlicerApp) -> None:
        self._server, self._slicer = server, slicer
        self._slices: dict[str, SliceView] = {}
        self._sized: set[AbstractView] = set()
        # VTK warns of a missing display, and of events that trame-slicer sends itself.
        vtkObject.GlobalWarningDisplayOff()
        self._make()
        vtkObject.GlobalWarningDisplayOn()

    def _make(self) -> None:
        manager = self._slicer.view_manager
        for factory, idle in (
            (RemoteSliceViewFactory, SLICE_FRAMES),
            (RemoteThreeDViewFactory, SPACE_FRAMES),
        ):
            manager.register_factory(
                factory(
                    self._server,
                    target_fps=FRAMES,
                    blur_fps=idle,
                    interactive_quality=MOVING_QUALITY,
                )
            )
        self._slices = {
            style.name: manager.create_view(
                ViewLayoutDefinition.slice_view(
                    style.orientation, label=style.name, color=style.color
                )
            )
            for style in SLICES
        }
        self._space = manager.create_view(
            ViewLayoutDefinition.threed_view(name=THREE_D, background_color=("#15181d", "#2b313a"))
        )
        for view in self.all():
            # In software, multi-sampling and depth peeling cost most of a picture's time.
            view.render_window().SetMultiSamples(0)
            view.renderer().SetUseDepthPeeling(False)
            view.interactor().AddObserver(
                vtkCommand.WindowResizeEvent, partial(self._onResize, view)
            )
        manager.set_current_view_ids([*self._slices, THREE_D])

    def all(self) -> list[AbstractView]:
        """Red, Green, Yellow and 3D."""
        return [*self._slices.values(), self._space]

    def sliceNode(self, name: str) -> Node:
        """The slice node of a view, e.g. "Red"."""
        return self._slices[name].get_view_node()

    def sliceNodes(self) -> list[Node]:
        """Of all slice views."""
        return [view.get_view_node() for view in self._slices.values()]

    def show(self, volume: Node) -> None:
        """Show a volume in all slice views, fitted."""
        self._slicer.display_manager.show_volume_in_slice_background(volume)
        for view in self.all():
            view.reset_view()

    def center(self, points: NDArray[np.float64]) -> None:
        """Show points (N, 3) RAS mm whole and large in the 3D view."""
        width, height = self._space.render_window().GetSize()
        aspect = max(width, 1) / max(height, 1)
        fitCameras([(self._space.get_view_node(), aspect)], points)
        self._space.schedule_render()

    def fit(self, name: str) -> None:
        """Fit one view to its content."""
        view = self._space if name == THREE_D else self._slices[name]
        view.reset_view()

    def _onResize(self, view: AbstractView, *_: Any) -> None:
        """Fit a view when the page first tells its size; later sizes keep the user's zoom."""
        if view not in self._sized:
            self._sized.add(view)
            view.fit_view_to_content()

    # --- in the page --------------------------------------------------------------------------

    def build(self, draw: Any) -> None:
        """Two by two views, each under a bar of its own.

        Args:
            draw: handler of a view's draw button, called with its name.
        """
        red, green, yellow = SLICES
        with html.Div(classes="sp-views"):
            self._buildSlice(red, draw)
            self._buildSpace()
            self._buildSlice(green, draw)
            self._buildSlice(yellow, draw)

    def _buildSlice(self, style: SliceStyle, draw: Any) -> None:
        slider = connect_slice_view_slider_to_state(self._server, self._slices[style.name]).name
        active = f"drawnView === '{style.name}'"
        with html.Div(
            classes=(f"['sp-view', {{'sp-drawing': {active}}}]",),
            style=f"--view: {style.color}",
            raw_attrs=[f'data-view="{style.name}"'],
        ):
            with html.Div(classes="sp-bar"):
                html.Span(style.name, classes="sp-name")
                html.Span(style.orientation, classes="sp-orientation")
                v3.VSlider(
                    v_model=(slider.value,),
                    min=(slider.min_value,),
                    max=(slider.max_value,),
                    step=(slider.step,),
                    hide_details=True,
                    density="compact",
                    thumb_size=10,
                    track_size=2,
                    raw_attrs=[f'aria-label="{style.name} slice offset, mm"'],
                )
                html.Span(
                    f"{{{{ ({slider.value} < 0 ? '{style.negative} ' : '{style.positive} ')"
                    f" + Math.abs({slider.value}).toFixed(1) }}}} mm",
                    classes="sp-offset",
                )
                barButton(
                    "mdi-draw",
                    f"Draw an outline in {style.name} (D)",
                    (draw, f"['{style.name}']"),
                    color=(f"{active} ? 'primary' : ''",),
                    disabled=("!ready",),
                )
                barButton("mdi-fit-to-screen-outline", "Fit", (self.fit, f"['{style.name}']"))
            self._buildPicture(style.name, f"howTo && (!drawnView || {active})")

    def _buildSpace(self) -> None:
        with html.Div(
            classes="sp-view", style="--view: #8aa4c8", raw_attrs=[f'data-view="{THREE_D}"']
        ):
            with html.Div(classes="sp-bar"):
                html.Span("3D", classes="sp-name")
                v3.VSpacer()
                barButton("mdi-fit-to-screen-outline", "Fit", (self.fit, f"['{THREE_D}']"))
            self._buildPicture(THREE_D, "false")

    def _buildPicture(self, name: str, told: str) -> None:
        with html.Div(classes="sp-picture"):
            client.ServerTemplate(name=self._server.translator.translate_key(name))
            html.Div("{{ howTo }}", classes="sp-hint", v_if=(told,))


def barButton(icon: str, text: str, click: Any, **options: Any) -> None:
    """A small button with an icon and a tooltip."""
    with v3.VBtn(
        icon=True,
        size="x-small",
        variant="text",
        click=click,
        raw_attrs=[f'aria-label="{text}"'],
        **options,
    ):
        v3.VIcon(icon, size=18)
        v3.VTooltip(text, activator="parent", location="bottom", open_delay=400)
