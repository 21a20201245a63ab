"""The schema that the programs of this folder have answers follow. They run in an environment of their own."""

from typing import Literal

from pydantic import BaseModel


class Capital(BaseModel):
    """The capital of a country."""

    city: Literal["Lima", "Quito"]
