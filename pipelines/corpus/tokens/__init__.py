"""Turns the documents of both splits into shards of packed rows.

`train` trains the tokenizer on the texts that `sample` draws, `mix` repeats or drops documents to meet the sources'
weights, `stage` encodes documents (`encode`, with ids cached by `cache`) and packs them into rows (`pack`), and
`shards` writes the rows into shards in the random order of `order`.
"""
