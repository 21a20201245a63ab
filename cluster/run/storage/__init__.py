"""Inputs of a run, by path or URI: `files` finds and opens them, `remote` reads those of other machines and object
stores, and `mounts` tells the kind of file system that a path lies on."""
