"""Cleans documents: `text` normalizes characters and `language` identifies languages.

`words` splits texts into words. Nothing here decides whether a document is kept; `cluster.personal_data` replaces
personal data.
"""
