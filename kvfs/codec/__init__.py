"""Pure bytes to bytes: frames, planes, digests."""
