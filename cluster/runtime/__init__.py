"""Machines: how much memory a recipe needs, who gets which share, and the connection to Ray.

Before anything starts, `memory` works out the needs of every stage, and `plan` divides the machine's resources, or
refuses. `session` then starts or joins a Ray cluster; `jobs` instead sends the whole command to somebody else's.
"""
