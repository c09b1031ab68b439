"""PySide6 objects with the manners of PythonQt, through which Slicer's Python sees Qt.

What is imitated, as PythonQt's sources do it: a Qt property is an attribute that holds its value
(so ``combo.currentText()`` fails: a str cannot be called); assigning to a name that is no property
fails; signals are connected by their C++ signature, and a signature that the class does not have
fails; a callable is given no more arguments than it takes; an exception in a slot is printed and
the program goes on (here it is also kept in ``uncaught``, for the tests). Each use of a member is
kept in ``used``, so that it can be compared with PythonQt's generated wrappers.

What it does not prove: conversions of arguments that PySide6 (Qt 6) takes and PythonQt (Qt 5)
refuses, who owns an object, what is painted where, and timing.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
import traceback
import types
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

LIBRARIES = (QtWidgets, QtGui, QtCore, QtUiTools)
FIRST_ONLY = ("getSaveFileName", "getOpenFileName")  # PythonQt gives the path, PySide a pair

if sys.version_info < (3, 12):
    # PySide6 6.12 gives None away without counting it, as later Pythons allow.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40

uncaught: list[BaseException] = []
used: set[tuple[str, str]] = set()
_classes: dict[type, type] = {}
_objects: dict[int, Any] = {}
_connections: list[tuple[Any, str, Any, Any, Any]] = []


class _Class(type):
    """Of the wrappers: static methods and enumerators of the Qt class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(cls.__dict__.get("Qt") or cls.Qt, name)
        used.add((cls.__name__, name))
        return _function(found, name) if callable(found) and not _isEnum(found) else found


def _isEnum(value: Any) -> bool:
    import enum

    return isinstance(value, enum.EnumType | enum.Enum)


class Wrapped(metaclass=_Class):
    """One Qt object or value."""

    Qt: type = object
    __slots__ = ("_qt",)

    def __new__(cls, *arguments: Any) -> Any:
        return wrap(cls.Qt(*map(unwrap, arguments)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        qt = self._qt
        if not shiboken6.isValid(qt):
            raise ValueError(f"Trying to access '{name}' of a destroyed {type(qt).__name__}")
        used.add((type(self).__name__, name))
        if isinstance(qt, QtCore.QObject):
            name = "objectName" if name == "name" else name
            if _property(qt, name) is not None:
                return wrap(qt.property(name))
            if name == "delete":
                return qt.deleteLater
            if _signalOf(qt, name):
                return _Signal(qt, name)
        found = getattr(qt, name)
        return _function(found, name) if callable(found) and not _isEnum(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        qt = self._qt
        used.add((type(self).__name__, name))
        name = "objectName" if name == "name" else name
        found = _property(qt, name) if isinstance(qt, QtCore.QObject) else None
        if found is None:
            raise AttributeError(
                f"{type(self).__name__} has no property '{name}'; PythonQt creates no attributes"
            )
        if not found.isWritable():
            raise AttributeError(f"Property '{name}' of {type(self).__name__} is not writable.")
        if not qt.setProperty(name, unwrap(value)):
            raise ValueError(f"{type(self).__name__}.{name} = {value!r}: wrong type")

    def connect(self, signature: str, target: Any) -> bool:
        """PythonQt's: ``button.connect("clicked(bool)", function)``."""
        connect(self._qt, signature, target)
        return True

    def disconnect(self, signature: str, target: Any = None) -> bool:
        """PythonQt's: from one function, or from all."""
        return disconnect(self._qt, signature, target)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._qt!r}>"


class _Signal:
    """A signal as a member: ``widget.valueChanged.connect(function)``."""

    def __init__(self, qt: Any, name: str) -> None:
        self._qt, self._signature = qt, _signalOf(qt, name)

    def connect(self, target: Any) -> None:
        """Call a function with what the signal carries, as far as it takes it."""
        connect(self._qt, self._signature, target)

    def disconnect(self, target: Any) -> None:
        """No longer."""
        if not disconnect(self._qt, self._signature, target):
            raise ValueError(f"{self._signature} is not connected to {target}")


# --- both ways ------------------------------------------------------------------------------------


def classOf(qtClass: type) -> type:
    """The wrapper of a Qt class; the same each time, so that types can be compared."""
    if qtClass not in _classes:
        parent = qtClass.__mro__[1]
        base = classOf(parent) if issubclass(parent, QtCore.QObject) else Wrapped
        _classes[qtClass] = _Class(qtClass.__name__, (base,), {"Qt": qtClass, "__slots__": ()})
    return _classes[qtClass]


def wrap(value: Any) -> Any:
    """A Qt object as PythonQt would give it; all else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(wrap(v) for v in value)
    if not isinstance(value, shiboken6.Object) or _isEnum(value):
        return value
    known = _objects.get(id(value))
    if known is None:
        known = object.__new__(classOf(type(value)))
        object.__setattr__(known, "_qt", value)
        _objects[id(value)] = known
    return known


def unwrap(value: Any) -> Any:
    """The Qt object of a wrapper."""
    if isinstance(value, list | tuple):
        return type(value)(unwrap(v) for v in value)
    return value._qt if isinstance(value, Wrapped) else value


def _function(found: Any, name: str) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        if named:
            raise TypeError(f"PythonQt takes no named arguments: {name}({', '.join(named)})")
        answer = wrap(found(*map(unwrap, arguments)))
        return answer[0] if name in FIRST_ONLY and isinstance(answer, tuple) else answer

    return call


def _property(qt: Any, name: str) -> Any:
    meta = qt.metaObject()
    index = meta.indexOfProperty(name)
    return meta.property(index) if index >= 0 else None


# --- signals --------------------------------------------------------------------------------------


def _signatures(qt: Any) -> dict[str, str]:
    """Signature in C++ -> member, of the signals; stand-ins list theirs in ``SIGNALS``."""
    meta = qt.metaObject()
    found = {}
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
            text = bytes(method.methodSignature().data()).decode()
            found[text] = text.split("(")[0]
    for cls in type(qt).__mro__:
        found |= cls.__dict__.get("SIGNALS", {})
    return found


def _signalOf(qt: Any, name: str) -> str:
    """The signature of a signal, with the most arguments."""
    return max((s for s, n in _signatures(qt).items() if n == name), key=len, default="")


def _most(target: Any) -> int:
    """How many arguments PythonQt would give a callable at most."""
    kinds = [p.kind for p in inspect.signature(target).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return sys.maxsize
    return sum(kind == inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds)


def connect(qt: Any, signature: str, target: Any) -> None:
    """Connect by signature; fails where the class has no such signal."""
    signature = signature.replace(", ", ",")
    used.add((type(qt).__name__, signature))
    known = _signatures(qt)
    if signature not in known:
        raise ValueError(f"{type(qt).__name__} has no signal {signature}")
    arguments = signature[signature.index("(") + 1 : -1]
    given = len(arguments.split(",")) if arguments else 0
    count = min(given, _most(target))

    def receive(*values: Any) -> None:
        try:
            target(*wrap(values[:count]))
        except Exception as error:  # a slot's exception must not end the program
            traceback.print_exc()
            uncaught.append(error)

    # PySide gives a slot as many arguments as it names.
    slot = (lambda: receive(), lambda a: receive(a), lambda a, b: receive(a, b))[given]
    signal = getattr(qt, known[signature])
    signal.connect(slot)
    _connections.append((qt, signature, target, signal, slot))


def disconnect(qt: Any, signature: str, target: Any = None) -> bool:
    """Disconnect; whether anything was connected."""
    if not shiboken6.isValid(qt):
        raise ValueError(f"Trying to call 'disconnect' on a destroyed {type(qt).__name__} object")
    signature = signature.replace(", ", ",")
    found = [c for c in _connections if c[0] is qt and c[1] == signature and target in (None, c[2])]
    for connection in found:
        connection[3].disconnect(connection[4])
        _connections.remove(connection)
    return bool(found)


# --- the modules ----------------------------------------------------------------------------------


class QtModule(types.ModuleType):
    """``import qt``: every class of Qt by its name."""

    def __getattr__(self, name: str) -> Any:
        if name == "Qt":
            return QtCore.Qt
        for library in LIBRARIES:
            found = getattr(library, name, None)
            if isinstance(found, type):
                return classOf(found)
        raise AttributeError(f"module 'qt' has no attribute '{name}'")
