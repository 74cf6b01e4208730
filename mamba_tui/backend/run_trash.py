"""The runs that this console has deleted.

They are deleted permanently when it is closed; until then they can be undeleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.runs import Run
    from core.runs.listing.trash import DeletedRun


class RunTrash:
    """The runs that this console can undelete, the last deleted one last, without other consoles' runs."""

    def __init__(self) -> None:
        self.deleted: list[DeletedRun] = []

    def delete(self, run: Run) -> None:
        """Delete a run, so that it can be undeleted. Raises UserError."""
        from core.runs.listing.trash import delete_run

        self.deleted.append(delete_run(run))

    def restore(self) -> str:
        """Undelete the last one. Returns its name, "" if there is none. Raises UserError."""
        from core.runs.listing.trash import undelete_run

        if not self.deleted:
            return ""
        deleted = self.deleted[-1]
        if not deleted.now.exists():
            self.deleted.pop()  # it must not block the ones before it
        name = undelete_run(deleted).name
        self.deleted.pop()
        return name

    def empty(self) -> None:
        """Delete everything permanently."""
        if not self.deleted:
            return
        from core.runs.listing.trash import delete_for_good

        for deleted in self.deleted:
            delete_for_good(deleted)
        self.deleted.clear()
