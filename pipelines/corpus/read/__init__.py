"""Reads the recipe's sources: `sources` cuts them into splits, one per task, and reads a split document by document.

`files` reads a file by its format: `lines` reads text and JSONL, `rows` JSON and CSV, `columns` Parquet, and `warc`
HTML and web captures, whose responses `http` decodes and whose main text `extractor` obtains from a separate process
that runs `extract_worker`. `unpack` unpacks gzip and zstd, `fields` finds the text in a row, and `pieces` stores the
records of large files. `hf_layout` selects the files of a Hugging Face dataset's split, and `packages` provides texts
that installed packages contain. `records` defines documents and bad records: a record that cannot be read becomes a bad
record with its file, offset and reason, and does not stop the corpus.
"""
