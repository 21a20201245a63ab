"""Cleans documents: `text` normalizes characters, `language` identifies languages, `pii` replaces personal data.

`words` splits texts into words. Nothing here decides whether a document is kept.
"""
