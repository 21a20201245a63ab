"""What holds a model in memory."""
