"""Typing a value of the configuration where it stands."""

from __future__ import annotations

from mamba_tui.document import Document
from mamba_tui.widgets.edit_in_place import EditInPlace


class EditDocument(EditInPlace):
    """Edits a configuration: the document has what is typed at once, and keeps it or goes back."""

    document: Document

    def changed(self) -> None:
        """The document changed."""
        raise NotImplementedError

    def keep(self, text: str) -> None:
        """The document has it already."""
        self.document.keep()
        self.changed()

    def drop(self) -> None:
        """The document goes back."""
        self.document.drop()
        self.changed()
