"""One module a stage: a function from a recipe and finished stages to an artifact."""
