"""The side panel: the steps of the desktop module, from the image to the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from .shown import SIDES
from .views import SLICES, barButton

COMPACT = {"density": "compact", "hide_details": True}
POINTS = (
    ("boundary", "Boundary", "mdi-vector-point"),
    ("inside", "Inside", "mdi-plus-circle-outline"),
    ("outside", "Outside", "mdi-minus-circle-outline"),
)
DOWNLOADS = (
    ("stl", "STL", "Surface for any viewer (LPS, mm)"),
    ("nrrd", "NRRD", "Labelmap in the volume's geometry"),
    ("seg.nrrd", "SEG.NRRD", "Segmentation for 3D Slicer"),
    ("vtp", "VTP", "Surface with correspondences, parts and uncertainty (LPS, mm)"),
    ("csv", "CSV", "Correspondences and parts: one line for each vertex (RAS, mm)"),
)
STEPS = ("json", "JSON", "Steps of the search (RAS, mm)")


class Actions(Protocol):
    """What the panel's controls do."""

    def openExample(self) -> None:
        """Open the bundled case."""

    def addStructure(self) -> None:
        """Begin another structure."""

    def removeStructure(self) -> None:
        """Delete the structure."""

    def draw(self, view: str) -> None:
        """Draw an outline in a slice view, or stop drawing it."""

    def place(self, role: str) -> None:
        """Click points of a role, or stop clicking them."""

    def reconstruct(self) -> None:
        """Fit now."""

    def find(self) -> None:
        """Find the organ in the image."""

    def nudge(self) -> None:
        """Let the step of the search be dragged, or no more."""

    def findFromPose(self) -> None:
        """Search again from where the step was dragged."""

    def cancel(self) -> None:
        """End the running fit."""

    def suggest(self) -> None:
        """Move a view to the slice that would tell most."""

    def undo(self) -> None:
        """One step back."""

    def redo(self) -> None:
        """One step forth."""

    def jump(self, row: str) -> None:
        """Show an annotation's slice."""

    def show(self, row: str) -> None:
        """Show or hide an annotation."""

    def delete(self, row: str) -> None:
        """Delete an annotation."""


def build(actions: Actions, icon: str) -> None:
    """The whole panel, in the layout that is open.

    Args:
        actions: what its controls do.
        icon: address of the extension's icon.
    """
    with v3.VNavigationDrawer(permanent=True, width=396, classes="sp-panel"):
        _head(actions, icon)
        with html.Div(classes="sp-scroll"):
            _image(actions)
            _organ(actions)
            _annotate(actions)
            _reconstruct(actions)
            _surface(actions)
            _export()


@contextmanager
def _section(title: str, **options: Any) -> Iterator[None]:
    with html.Div(classes="sp-section", **options):
        html.H2(title)
        yield


def _head(actions: Actions, icon: str) -> None:
    with html.Div(classes="sp-head"):
        html.Img(src=icon, alt="")
        html.Span("ShapePriorSlicer", classes="sp-title sp-grow")
        for name, key, text in (("undo", "Z", "Undo"), ("redo", "Y", "Redo")):
            with v3.VBtn(
                icon=True,
                size="small",
                variant="text",
                click=getattr(actions, name),
                disabled=(f"!{name}Text",),
                raw_attrs=[f'aria-label="{text}"'],
            ):
                v3.VIcon(f"mdi-{name}", size=20)
                v3.VTooltip(
                    f"{text}: {{{{ {name}Text }}}} (Ctrl+{key})",
                    activator="parent",
                    location="bottom",
                )


def _image(actions: Actions) -> None:
    with _section("Image"), html.Div(classes="sp-row"):
        v3.VIcon("mdi-cube-scan", size=18, classes="sp-label")
        html.Span(
            "{{ volumeName || 'No volume is open.' }}",
            classes="sp-grow sp-ellipsis",
            title=("volumeName",),
        )
        with _button("Example", click=actions.openExample):
            _tip("Open the bundled case again; it replaces the volume and its structures")
        html.Input(
            type="file",
            classes="d-none",
            raw_attrs=['id="sp-file"', 'accept=".nii,.gz,.nrrd,.nhdr,.mha"'],
            change=(
                "opening = true; window.shapePrior.upload($event.target.files[0])"
                ".finally(() => { opening = false; }); $event.target.value = ''"
            ),
        )
        with _button(
            "Open …",
            click="window.document.getElementById('sp-file').click()",
            loading=("opening",),
        ):
            _tip("NIfTI or NRRD; it replaces the volume and its structures")


def _organ(actions: Actions) -> None:
    with _section("Structure"):
        with html.Div(classes="sp-row"):
            v3.VSelect(
                v_model=("structure",),
                items=("structures",),
                variant="outlined",
                disabled=("!ready",),
                raw_attrs=['aria-label="Structure"'],
                **COMPACT,
            )
            barButton("mdi-plus", "New structure", actions.addStructure)
            barButton("mdi-delete-outline", "Delete structure", actions.removeStructure)
        v3.VSelect(
            v_model=("prior",),
            items=("priors",),
            variant="outlined",
            classes="mb-1",
            disabled=("!ready",),
            raw_attrs=['aria-label="Organ prior"'],
            **COMPACT,
        )
        html.Div(
            "{{ aboutPriors[prior].text }}",
            classes="sp-small",
            v_if=("aboutPriors[prior]",),
        )
        with html.Div(classes="sp-row mt-2 mb-0", title=("imageText",)):
            v3.VSwitch(
                model_value=("canUseImage && (useImage || needsImage)",),
                update_modelValue="useImage = $event",
                label="Use the image",
                color="primary",
                disabled=("!canUseImage || needsImage",),
                classes="sp-grow",
                **COMPACT,
            )
            with _button("Find in image", click=actions.find, disabled=("!canUseImage || busy",)):
                _tip("Find the organ in the image, without any annotation; outlines refine it")
        with html.Div(classes="sp-row mt-2 mb-0", v_if=("aboutPriors[prior]?.paired",)):
            html.Span("Side", classes="sp-label sp-grow")
            with v3.VBtnToggle(
                v_model=("side",),
                mandatory=True,
                variant="outlined",
                divided=True,
                density="compact",
            ):
                for side in SIDES:
                    v3.VBtn(side["title"], value=side["value"], size="small")


def _annotate(actions: Actions) -> None:
    with _section("Annotate"):
        with html.Div(classes="sp-row"):
            html.Span("Outline", classes="sp-label sp-grow")
            for style in SLICES:
                with _button(
                    style.name,
                    "mdi-draw",
                    click=(actions.draw, f"['{style.name}']"),
                    active=(f"drawnView === '{style.name}'",),
                    disabled=("!ready",),
                ):
                    _tip(f"Click around the organ in {style.name}; right click or Enter ends")
        with html.Div(classes="sp-row"):
            html.Span("Points", classes="sp-label sp-grow")
            for role, name, icon in POINTS:
                with _button(
                    name,
                    icon,
                    click=(actions.place, f"['{role}']"),
                    active=(f"drawnRole === '{role}'",),
                    disabled=("!ready",),
                ):
                    _tip(f"Click points {_WHERE[role]} in any slice; right click or Enter ends")
        with html.Div(classes="sp-status"):
            html.Div(
                "{{ stateText }}",
                classes=("stateIsWrong ? 'text-error' : 'sp-label'",),
                raw_attrs=['role="status"'],
            )
            v3.VProgressLinear(
                v_if=("busy",), indeterminate=True, color="primary", height=2, classes="mt-1"
            )
        _steps(actions)
        _table(actions)


def _steps(actions: Actions) -> None:
    """How the search that found the surface went, and going on from one of its steps."""
    v3.VSelect(
        v_if=("steps.length",),
        v_model=("step",),
        items=("steps",),
        variant="outlined",
        classes="mb-1",
        raw_attrs=['aria-label="Steps of the search"'],
        **COMPACT,
    )
    with html.Div(classes="sp-row", v_if=("steps.length",)):
        with _button("Nudge", click=actions.nudge, active=("nudging",)):
            _tip("Drag the shape of this step by its handles, in 3D or in slices")
        with _button(
            "Refine from here", click=actions.findFromPose, disabled=("!stepShown || busy",)
        ):
            _tip("Search again from where the shape of this step is now")


_WHERE = {
    "boundary": "on the organ's boundary",
    "inside": "inside the organ",
    "outside": "outside the organ",
}


def _table(actions: Actions) -> None:
    with html.Table(classes="sp-table", v_if=("rows.length",)):
        with html.Thead(), html.Tr():
            html.Th("Name")
            html.Th("View", style="width: 50px")
            html.Th("Points", classes="sp-number", style="width: 44px")
            html.Th("Residual, mm", classes="sp-number", style="width: 62px")
            html.Th("", style="width: 84px")
        with html.Tbody(), html.Tr(v_for="row in rows", key="row.id"):
            with html.Td(classes="sp-cell", title=("row.name",)):
                html.Span(classes="sp-dot", style=("{background: row.color}",))
                html.Span("{{ row.name }}")
            html.Td("{{ row.view || (row.id ? 'Any' : '') }}")
            html.Td("{{ row.points }}", classes="sp-number")
            html.Td("{{ row.residual ?? '-' }}", classes="sp-number")
            with html.Td(style="text-align: right"), html.Span(v_if=("row.id",)):
                barButton("mdi-crosshairs-gps", "Jump to slice", (actions.jump, "[row.id]"))
                with v3.VBtn(
                    icon=True,
                    size="x-small",
                    variant="text",
                    click=(actions.show, "[row.id]"),
                    raw_attrs=['aria-label="Show or hide"'],
                ):
                    v3.VIcon(icon=("row.visible ? 'mdi-eye' : 'mdi-eye-off'",), size=18)
                barButton("mdi-delete-outline", "Delete", (actions.delete, "[row.id]"))


def _reconstruct(actions: Actions) -> None:
    with _section("Reconstruct"):
        with html.Div(classes="sp-row"):
            v3.VSwitch(
                v_model=("autoUpdate",),
                label="Auto-update",
                color="primary",
                disabled=("!ready",),
                classes="sp-grow",
                **COMPACT,
            )
            _button(
                "Reconstruct",
                variant="flat",
                color="primary",
                click=actions.reconstruct,
                disabled=("!ready",),
            )
            _button("Cancel", click=actions.cancel, disabled=("!busy",))
        html.Span("Strength of the prior", classes="sp-label")
        v3.VSlider(
            v_model=("strength",),
            min=-2,
            max=2,
            step=0.1,
            disabled=("!ready",),
            color="primary",
            raw_attrs=['aria-label="Strength of the prior"'],
            **COMPACT,
        )
        with html.Div(classes="sp-ends sp-small"):
            html.Span("Annotations")
            html.Span("Prior")


def _surface(actions: Actions) -> None:
    with _section("Surface"):
        with (
            html.Div(classes="sp-figures", v_if=("figures.length",)),
            html.Div(
                classes="sp-figure",
                v_for="figure in figures",
                key="figure.name",
                title=("figure.about",),
            ),
        ):
            html.Div("{{ figure.name }}", classes="sp-small")
            with html.Div():
                html.B("{{ figure.value }}")
                html.Span("{{ figure.unit }}", classes="ml-1")
        with html.Div(classes="sp-row"):
            html.Span("Color", classes="sp-label", style="width: 56px")
            v3.VSelect(
                v_model=("coloring",),
                items=("colorings",),
                variant="outlined",
                disabled=("!ready",),
                raw_attrs=['aria-label="Color"'],
                **COMPACT,
            )
        with html.Div(classes="sp-row"):
            html.Span("Opacity", classes="sp-label", style="width: 56px")
            v3.VSlider(
                v_model=("opacity",),
                min=0,
                max=1,
                step=0.05,
                disabled=("!ready",),
                raw_attrs=['aria-label="Opacity"'],
                **COMPACT,
            )
            html.Span("{{ Math.round(100 * opacity) }} %", style="width: 40px; text-align: right")
        with _button(
            "Suggest next slice",
            "mdi-lightbulb-on-outline",
            click=actions.suggest,
            disabled=("!hasUncertainty",),
            block=True,
        ):
            _tip("Moves a view to where one more outline would reduce the uncertainty most")


def _export() -> None:
    with _section("Export"), html.Div(classes="sp-row sp-wrap"):
        for form, name, text in DOWNLOADS:
            _download(form, name, text, disabled=("!hasSurface",))
        _download(*STEPS, v_if=("steps.length",))


def _download(form: str, name: str, text: str, **options: Any) -> None:
    with _button(name, href=f"download/{form}", raw_attrs=["download"], **options):
        _tip(text)


def _button(text: str, icon: str = "", **options: Any) -> v3.VBtn:
    options = {"size": "small", "variant": "tonal", "classes": "text-none px-2", **options}
    if icon:
        options["prepend_icon"] = icon
    return v3.VBtn(text, **options)


def _tip(text: str) -> None:
    v3.VTooltip(text, activator="parent", location="bottom", open_delay=400, max_width=260)
