"""Models that several workers share: `weights` makes one without memory and reads each worker's part from files, `fsdp`
splits its parameters over the workers and gathers them again, and `export` writes it as a model folder."""
