"""The demo's small world: facts to learn, questions to answer, and an annotator that stands in for people."""
