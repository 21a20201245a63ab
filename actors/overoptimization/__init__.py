"""Signs that a policy exploits its reward: `signs` computes them from a step's samples, `tracker` follows them."""
