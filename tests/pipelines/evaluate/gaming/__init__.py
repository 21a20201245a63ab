"""Tests of pipelines.evaluate.gaming."""
