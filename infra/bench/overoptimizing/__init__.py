"""The world, the models and the statistics of the benchmark `overoptimization`."""
