"""Typing a value of the configuration in place."""

from __future__ import annotations

from mamba_tui.document import Document
from mamba_tui.widgets.edit_in_place import EditInPlace


class EditDocument(EditInPlace):
    """Edits a configuration: the document tries what is typed at once, and keeps it or reverts it."""

    document: Document

    def changed(self) -> None:
        """The document changed."""
        raise NotImplementedError

    def keep(self, text: str) -> None:
        """Nothing: the document has the value already."""
        self.document.keep()
        self.changed()

    def drop(self) -> None:
        """Revert the document."""
        self.document.drop()
        self.changed()
