"""The annotators: their names and tokens, and who of them is excluded from training and statistics."""

import secrets

from sqlmodel import select

from cluster.errors import UserError
from cluster.feedback.store import Store
from cluster.feedback.tables import Annotator, Excluded, Ranking, Thumb
from cluster.keys import NAME, token_digest


class AnnotatorQueries(Store):
    """The queries on annotators."""

    def add_annotator(self, name: str, renew: bool = False) -> str:
        """Registers an annotator, or with `renew` replaces the token of one who is registered.

        Returns:
            the token to sign in with. Only its hash is stored.

        Raises:
            UserError: the name is invalid, taken, or with `renew` unknown.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no annotator's name: up to 60 letters, digits, spaces and . @ - _")
        token = secrets.token_urlsafe(32)
        with self._write() as session:
            found = session.get(Annotator, name)
            if (found is not None) != renew:
                advice = f"`triptych annotator {'add' if renew else 'renew'} {name!r}` is for that"
                raise UserError(f"{name} is {'no annotator yet' if renew else 'an annotator already'}; {advice}")
            row = found or Annotator(name=name, token_hash="")
            row.token_hash = token_digest(token)
            session.add(row)
        return token

    def annotator_of(self, token: str) -> str | None:
        """Finds the name of the annotator who has this token."""
        with self._read() as session:
            return session.exec(select(Annotator.name).where(Annotator.token_hash == token_digest(token))).first()

    def annotators(self) -> list[str]:
        """Lists the registered annotators by name."""
        with self._read() as session:
            return list(session.exec(select(Annotator.name).order_by(Annotator.name)))

    def exclude(self, annotator: str, excluded: bool = True) -> None:
        """Excludes an annotator's judgements from training and statistics, or includes them again; they stay stored.

        Raises:
            UserError: no annotator of that name is registered or has judged.
        """
        with self._write() as session:
            known = (
                session.get(Annotator, annotator)
                or session.exec(select(Ranking.id).where(Ranking.annotator == annotator)).first()
                or session.exec(select(Thumb.id).where(Thumb.caller == annotator)).first()
            )
            if not known:
                raise UserError(f"there is no annotator {annotator}: `triptych annotator list` names them")
            found = session.get(Excluded, annotator)
            if excluded and found is None:
                session.add(Excluded(annotator=annotator))
            elif found is not None and not excluded:
                session.delete(found)

    def excluded(self) -> list[str]:
        """Lists the excluded annotators by name."""
        with self._read() as session:
            return list(session.exec(select(Excluded.annotator).order_by(Excluded.annotator)))
