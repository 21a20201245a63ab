"""Finds the text in a row: a field, or a path such as `a.b` through objects and lists."""

from typing import Any


class FieldError(ValueError):
    """Raised for a row without a text; the message is the predicate of a sentence whose subject is the row."""


def text_of(row: Any, field: str, encoding: str = "utf-8") -> str:
    """Returns the text of a row: a string, bytes in `encoding`, or a list of them, which line breaks join.

    A field with a dot in its name takes precedence over the path that it would be.

    Raises:
        FieldError: there is no such field, or something else in it.
    """
    if not isinstance(row, dict):
        raise FieldError(f' is not an object such as {{"{field}": "..."}}; fix or remove the line')
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field not in row:
        value = _at(row, field.split("."))
        if value is None:
            fields = ", ".join(map(str, list(row)[:8])) or "nothing"
            raise FieldError(f" has no {field!r}, only {fields}; set text_field of this source or fix the line")
    pieces = value if isinstance(value, list) else [value]
    return "\n".join([_string(piece, field, encoding) for piece in pieces])


def _at(value: Any, path: list[str]) -> Any:
    for place, name in enumerate(path):
        if isinstance(value, list):
            found = [_at(item, path[place:]) for item in value]
            return [item for item in found if item is not None] or None
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _string(value: Any, field: str, encoding: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode(encoding)
        except UnicodeDecodeError as error:
            raise FieldError(f": {field!r} is not {encoding} at byte {error.start}; fix or remove it") from error
    if value is None:
        raise FieldError(f": {field!r} is null; fill it in or remove the row")
    if not isinstance(value, str):
        raise FieldError(f": {field!r} is {type(value).__name__}, not text; fix or remove it")
    return value
