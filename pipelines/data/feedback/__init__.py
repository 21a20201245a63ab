"""Preference files in and out of the feedback database.

`io` imports and exports files, `formats` has a reader and a writer for each format (a new one goes to its `FORMATS`),
`trees` those of nested formats, and `item` is the common form of their rows.
"""
