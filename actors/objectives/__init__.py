"""One file an algorithm: what is minimised, on plain tensors."""
