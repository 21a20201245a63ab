"""The demo's small world: facts to learn, questions to answer, and a labeller that stands in for people."""
