"""Attention of the language models: `packed` registers it with transformers and keeps the documents of a row apart,
`blockwise` is its kernel in bfloat16 on CPUs, and `prefix_sharing` lays answers to one prompt in one row behind it."""
