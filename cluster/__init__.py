"""Where work runs and what is kept."""
