"""Win rates by a judge, a served model or people: pairs are read, asked about, checked against people, and counted."""
