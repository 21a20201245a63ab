"""Plain PyTorch: models, objectives, optimisers. No Ray here."""
