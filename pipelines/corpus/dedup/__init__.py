"""Drops contaminated and duplicate documents, and splits the others; `stage` runs the phases in this order.

`decontaminate` finds passages of evaluation files. `minhash` signs documents, and `index` stores signatures and hashes,
which `merge` joins where parts are many. `cluster` finds clusters of duplicates and decides which document of each
stays. `split` assigns what is left to the training or the held-out split.
"""
