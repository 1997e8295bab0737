"""The kernel transport: our own session over /dev/fuse, with passthrough."""
