"""Windows that ask the user something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from ..server.dependencies import CANCEL, Question, Step
from .translation import tr as _


def chooseFolder(title: str, folder: str = "") -> str:
    """Ask for a folder, beginning in one; nothing if the user cancels."""
    import qt

    window = slicer.util.mainWindow()
    return str(qt.QFileDialog.getExistingDirectory(window, title, folder) or "")


def chooseFile(title: str, path: str, kinds: str) -> str:
    """Ask where to write a file; nothing if the user cancels."""
    import qt

    found = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, path, kinds)
    # PythonQt gives the path alone, other bindings the filter too.
    return str((found[0] if isinstance(found, tuple) else found) or "")


def confirmReplacing(path: Path) -> bool:
    """Whether a file may be replaced."""
    question = _("'{name}' exists already. Replace it?").format(name=path.name)
    return bool(slicer.util.confirmYesNoDisplay(question))


def confirmRemoving(name: str) -> bool:
    """Whether a structure may be deleted: undo cannot bring all of it back."""
    question = _("Delete '{name}' with its annotations and its surface?").format(name=name)
    return bool(slicer.util.confirmYesNoDisplay(question))


def confirmRestart() -> bool:
    """Whether Slicer may be restarted now."""
    return bool(
        slicer.util.confirmYesNoDisplay(
            _("The PyTorch extension is there after a restart. Save your work first. Restart now?")
        )
    )


class InstallDialog:
    """The one question before packages are installed, and the progress of it."""

    def __init__(self) -> None:
        self._dialog: Any = None

    def ask(self, question: Question) -> str:
        """Show the question; the answer that was chosen."""
        import qt

        if slicer.app.testingEnabled():
            return CANCEL
        box = qt.QMessageBox(slicer.util.mainWindow())
        box.setWindowTitle(_("Shape Prior Slicer"))
        box.setTextFormat(qt.Qt.PlainText)
        box.setText(question.text)
        box.setDetailedText("\n".join((question.details, "", *question.packages)))
        for answer, words in question.choices:
            role = qt.QMessageBox.RejectRole if answer == CANCEL else qt.QMessageBox.AcceptRole
            box.addButton(words, role)
        box.exec_()
        chosen = box.clickedButton()
        # Qt may have marked a letter of the button's words as its key.
        words = "" if chosen is None else chosen.text.replace("&", "")
        return next((a for a, w in question.choices if w == words), CANCEL)

    def progress(self, step: Step) -> bool:
        """Show how far it is; whether to go on."""
        if self._dialog is None:
            self._dialog = slicer.util.createProgressDialog(
                parent=slicer.util.mainWindow(), windowTitle=_("Installing the backend")
            )
        self._dialog.maximum = step.total
        self._dialog.labelText = step.text
        self._dialog.value = step.done
        slicer.app.processEvents()
        return not self._dialog.wasCanceled

    def close(self) -> None:
        """It is over."""
        if self._dialog is not None:
            self._dialog.close()
