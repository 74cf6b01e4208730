"""The runs that this console has deleted: they go for good when it is closed, and until then come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.runs import Run
    from core.runs.listing.trash import DeletedRun


class RunTrash:
    """What this console can bring back, the newest last. What others deleted is theirs."""

    def __init__(self) -> None:
        self.deleted: list[DeletedRun] = []

    def delete(self, run: Run) -> None:
        """Put a run aside. Raises UserError."""
        from core.runs.listing.trash import delete_run

        self.deleted.append(delete_run(run))

    def restore(self) -> str:
        """Bring the newest back; its name, "" when there is none. Raises UserError."""
        from core.runs.listing.trash import undelete_run

        if not self.deleted:
            return ""
        deleted = self.deleted[-1]
        if not deleted.now.exists():
            self.deleted.pop()  # it must not stand in the way of those before it
        name = undelete_run(deleted).name
        self.deleted.pop()
        return name

    def empty(self) -> None:
        """Really delete."""
        if not self.deleted:
            return
        from core.runs.listing.trash import delete_for_good

        for deleted in self.deleted:
            delete_for_good(deleted)
        self.deleted.clear()
