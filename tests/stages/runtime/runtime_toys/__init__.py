"""A small model, stages and rank programs to try the runtime on."""
