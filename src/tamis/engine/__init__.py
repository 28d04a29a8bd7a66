"""The shared scoring core: packed batches of token sequences, one device thread for everybody."""
