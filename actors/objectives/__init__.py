"""One file an algorithm: what is minimized, on plain tensors."""
