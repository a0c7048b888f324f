"""One base and many deltas, served: images of different deltas form in one batch."""
