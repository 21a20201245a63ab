"""The recipe: one YAML file with everything that a run does, validated whole before anything starts.

`loading` reads the file, applies overrides of the command line and names the key of an error; `renamed` still reads the
keys of the version before. `recipe` is the whole, made of one module a section: `model` (and the cluster), `corpus`,
`training` (pre-training, fine-tuning, reward model, DPO), `collect`, `rlhf`, `evaluate` and `serve`. `base` has
the types that sections share.
"""
