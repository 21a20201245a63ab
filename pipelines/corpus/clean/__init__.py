"""Cleans documents: `text` normalizes characters, `language` identifies languages, `pii` replaces personal data.

Nothing here decides whether a document is kept.
"""
