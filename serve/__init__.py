"""Finished models over HTTP: an OpenAI-compatible gateway, one engine a model, and the pages that people use."""
