"""The table of annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..session.status import Row
from . import texts
from .translation import tr as _

Node = Any
ROW_HEIGHT = 22  # pixels
MOST_ROWS = 8  # that are seen at once


class AnnotationTable:
    """One row for each annotation, with a box that shows or hides it.

    Args:
        table: QTableWidget.
        onChanged: called with an item that changed, by the user or by ``update``.
    """

    def __init__(self, table: Any, onChanged: Callable[[Any], None]) -> None:
        import qt

        self._table = table
        self._nodes: list[Node | None] = []
        table.setColumnCount(len(texts.COLUMNS))
        table.setHorizontalHeaderLabels([_(name) for name in texts.COLUMNS])
        table.verticalHeader().hide()
        table.verticalHeader().defaultSectionSize = ROW_HEIGHT
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.connect("itemChanged(QTableWidgetItem*)", onChanged)

    def update(self, rows: Sequence[Row]) -> None:
        """Show annotations; what is shown already stays."""
        import qt

        table = self._table
        if table.rowCount != len(rows):
            table.setRowCount(len(rows))
        self._fit(len(rows))
        before, self._nodes = self._nodes, [row.node for row in rows]
        for index, row in enumerate(rows):
            for column, text in enumerate(texts.cells(row)):
                item = table.item(index, column)
                # The image has no box: an item that had one is of no use for it.
                boxed = column == 0 and index < len(before) and before[index] is not None
                if item is None or (boxed and row.node is None):
                    item = qt.QTableWidgetItem()
                    table.setItem(index, column, item)
                if item.text() != text:
                    item.setText(text)
            shown = qt.Qt.Checked if row.visible else qt.Qt.Unchecked
            if row.node is not None and table.item(index, 0).checkState() != shown:
                table.item(index, 0).setCheckState(shown)

    def _fit(self, count: int) -> None:
        """As high as its rows; gone while there are none."""
        table = self._table
        header = table.horizontalHeader().sizeHint.height()
        height = header + ROW_HEIGHT * min(count, MOST_ROWS) + 2 * table.frameWidth
        if table.minimumHeight != height:
            table.minimumHeight = table.maximumHeight = height
        table.setVisible(count > 0)

    def selectedNode(self) -> Node | None:
        """The annotation of the selected row."""
        row = self._table.currentRow()
        return self._nodes[row] if 0 <= row < len(self._nodes) else None

    def showOrHide(self, item: Any) -> None:
        """A check box was clicked: show or hide that annotation."""
        import qt

        if item.column() != 0 or item.row() >= len(self._nodes):
            return
        node = self._nodes[item.row()]
        display = None if node is None else node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(item.checkState() == qt.Qt.Checked)
