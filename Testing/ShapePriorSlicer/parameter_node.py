"""A small parameterNodeWrapper: the types, the format in the node and the connectors of Slicer's.

Only str, bool, float within a range, and Enum; QCheckBox, ctkSliderWidget and QComboBox. As there,
a combo box is emptied and filled anew when it is connected, and a bad value is a ValueError.
"""

from __future__ import annotations

import enum
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import vtk


@dataclass(frozen=True)
class WithinRange:
    """A number's limits."""

    minimum: float
    maximum: float


def parameterNodeWrapper(cls: type) -> type:
    """Make a class of annotated fields a view of a parameter node."""
    hints = typing.get_type_hints(cls, include_extras=True)
    defaults = {name: getattr(cls, name, "") for name in hints}

    class Wrapper(_Wrapper):
        pass

    Wrapper.__name__ = cls.__name__
    Wrapper.allParameters, Wrapper.defaults = hints, defaults
    for name in hints:
        setattr(Wrapper, name, property(*_accessors(name)))
    return Wrapper


def _accessors(name: str) -> tuple[Any, Any]:
    return (lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))


class _Wrapper:
    allParameters: ClassVar[dict[str, Any]] = {}
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, parameterNode: Any) -> None:
        assert parameterNode is not None
        self.parameterNode = parameterNode
        self._guis: dict[int, dict[str, _Connector]] = {}
        self._next, self._updating = 0, False
        for name, default in self.defaults.items():
            if not parameterNode.HasParameter(name):
                self.setValue(name, default)

    def getValue(self, name: str) -> Any:
        text, kind = self.parameterNode.GetParameter(name), _plain(self.allParameters[name])
        if issubclass(kind, enum.Enum):
            return kind[text]
        return text == "True" if kind is bool else kind(text)

    def setValue(self, name: str, value: Any) -> None:
        hint = self.allParameters[name]
        kind = _plain(hint)
        if not isinstance(value, int | float if kind is float else kind):
            raise ValueError(f"{name}: {value!r} is no {kind.__name__}")
        for limits in getattr(hint, "__metadata__", ()):
            if not limits.minimum <= value <= limits.maximum:
                raise ValueError(f"{name}: {value} is not within {limits}")
        text = value.name if isinstance(value, enum.Enum) else str(value)
        self.parameterNode.SetParameter(name, text)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        for name in mapping:
            if name not in self.allParameters:
                raise ValueError(f"Cannot find a param with the given name: {name}")
        found = {n: _Connector(self, n, widget) for n, widget in mapping.items()}
        tag, self._next = self._next, self._next + 1
        self._guis[tag] = found
        self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onModified)
        return tag

    def disconnectGui(self, tag: int) -> None:
        for connector in self._guis.pop(tag, {}).values():
            connector.disconnect()

    def _onModified(self, caller: Any, event: str) -> None:
        if self._updating:
            return
        self._updating = True
        for gui in self._guis.values():
            for connector in gui.values():
                connector.write()
        self._updating = False


class _Connector:
    """One parameter and one widget."""

    def __init__(self, wrapper: _Wrapper, name: str, widget: Any) -> None:
        import ctk
        import qt

        self._wrapper, self._name, self._widget = wrapper, name, widget
        kind = _plain(wrapper.allParameters[name])
        self._choices: list[Any] = []
        if kind is bool and type(widget) is qt.QCheckBox:
            self._property, self._signal = "checked", widget.stateChanged
        elif kind is float and type(widget) is ctk.ctkSliderWidget:
            (limits,) = wrapper.allParameters[name].__metadata__
            widget.minimum, widget.maximum = limits.minimum, limits.maximum
            self._property, self._signal = "value", widget.valueChanged
        elif issubclass(kind, enum.Enum) and type(widget) is qt.QComboBox:
            self._choices = list(kind)
            widget.clear()
            for choice in kind:
                widget.addItem(choice.label() if hasattr(choice, "label") else choice.name)
            self._property, self._signal = "currentIndex", widget.currentIndexChanged
        else:
            raise RuntimeError(f"Unable to create GUI connector from '{kind}' to {type(widget)}")
        self.write()
        self._signal.connect(self._changed)

    def disconnect(self) -> None:
        self._signal.disconnect(self._changed)

    def write(self) -> None:
        value = self._wrapper.getValue(self._name)
        value = self._choices.index(value) if self._choices else value
        setattr(self._widget, self._property, value)

    def _changed(self) -> None:
        if not self._wrapper._updating:
            value = getattr(self._widget, self._property)
            value = self._choices[value] if self._choices else value
            self._wrapper.setValue(self._name, value)


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def module() -> types.ModuleType:
    """``slicer.parameterNodeWrapper``."""
    made = types.ModuleType("slicer.parameterNodeWrapper")
    made.WithinRange, made.parameterNodeWrapper = WithinRange, parameterNodeWrapper
    return made
