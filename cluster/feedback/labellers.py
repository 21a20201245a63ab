"""The people who judge: their tokens, and whose judgements count."""

import hashlib
import re
import secrets

from sqlmodel import select

from cluster.failures import UserError
from cluster.feedback.store import Store
from cluster.feedback.tables import CODE, GOLD, Excluded, Labeller, Ranking, Thumb


def is_person(labeller: str) -> bool:
    """Whether a judgement's labeller is a person, neither a rule written in code nor what a gold item expects."""
    return not labeller.startswith((CODE, GOLD))


class Labellers(Store):
    """Who may sign in, and who is excluded."""

    def add_labeller(self, name: str, renew: bool = False) -> str:
        """Lets a person sign in. With `renew`, a person who is there gets another token and the old one ends.

        Returns:
            the token, which is not kept: only its hash is.

        Raises:
            UserError: the name is taken, unknown (to renew), or not a name.
        """
        if not re.fullmatch(r"\w[\w .@-]{0,59}", name):
            raise UserError(f"{name!r} is no labeller's name: up to 60 letters, digits, spaces and . @ - _")
        token = secrets.token_urlsafe(32)
        with self._write() as session:
            found = session.get(Labeller, name)
            if (found is not None) != renew:
                advice = f"`triptych labeller {'add' if renew else 'renew'} {name!r}` is for that"
                raise UserError(f"{name} is {'no labeller yet' if renew else 'a labeller already'}; {advice}")
            row = found or Labeller(name=name, token_hash="")
            row.token_hash = _hash(token)
            session.add(row)
        return token

    def labeller_of(self, token: str) -> str | None:
        """The name of the person whose token it is."""
        with self._read() as session:
            return session.exec(select(Labeller.name).where(Labeller.token_hash == _hash(token))).first()

    def labellers(self) -> list[str]:
        """Everyone who may sign in, by name."""
        with self._read() as session:
            return list(session.exec(select(Labeller.name).order_by(Labeller.name)))

    def exclude(self, labeller: str, excluded: bool = True) -> None:
        """Takes a labeller's judgements out of all that is learned, or back in; they are kept either way.

        Raises:
            UserError: nobody of that name may sign in or has judged.
        """
        with self._write() as session:
            known = (
                session.get(Labeller, labeller)
                or session.exec(select(Ranking.id).where(Ranking.labeller == labeller)).first()
                or session.exec(select(Thumb.id).where(Thumb.caller == labeller)).first()
            )
            if not known:
                raise UserError(f"there is no labeller {labeller}: `triptych labeller list` names them")
            found = session.get(Excluded, labeller)
            if excluded and found is None:
                session.add(Excluded(labeller=labeller))
            elif found is not None and not excluded:
                session.delete(found)

    def excluded(self) -> list[str]:
        """Everyone whose judgements count for nothing, by name."""
        with self._read() as session:
            return list(session.exec(select(Excluded.labeller).order_by(Excluded.labeller)))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
