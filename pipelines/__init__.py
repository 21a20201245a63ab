"""The steps of the guide: each a function from configuration and inputs to an artefact."""
