"""Slicer's translation of what the panel says, where there is one."""

try:
    from slicer.i18n import tr
except ImportError:  # slicer-core has none

    def tr(text: str) -> str:
        """The text as it is."""
        return text


__all__ = ["tr"]
