"""The recipe: every setting of a run as typed, validated sections of one YAML file.

Reading goes loading (YAML, overrides) → renamed (keys of the version before) → recipe (the whole, with the rules that
span sections) → one module a section: model (with cluster), corpus, training (pretrain, sft, reward, dpo), collect,
evaluate, serve, loop, experiment, and the package rlhf. The package functions finds the functions that a recipe names
as module:function, explain words the errors of validation, and base holds the types that sections share. A new key is a
field, with a description, of its section's class; reference turns the descriptions into `triptych recipe` and
infra/docs/recipe.md.
"""
