"""What people thought of single answers that a served model gave them."""

from sqlmodel import delete, select

from cluster.feedback.store import Store, column
from cluster.feedback.tables import Thumb

# What there is one thumb of.
KEYS = ("request", "caller")


class Thumbs(Store):
    """One thumb of each caller and answer."""

    def save_thumb(self, thumb: Thumb) -> None:
        """Stores what a caller thinks of an answer, in place of what they thought before."""
        with self._write() as session:
            self._put(session, Thumb, thumb.model_dump(exclude={"id"}), KEYS)

    def remove_thumb(self, request: str, caller: str) -> None:
        """Takes back what a caller thought of an answer, if anything."""
        with self._write() as session:
            session.exec(delete(Thumb).where(column(Thumb.request) == request, column(Thumb.caller) == caller))

    def thumbs(self) -> list[Thumb]:
        """Every thumb, in the order given."""
        with self._read() as session:
            return list(session.exec(select(Thumb).order_by(column(Thumb.id))))
