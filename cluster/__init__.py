"""Where work runs and what is kept."""

__version__ = "0.1.0"
