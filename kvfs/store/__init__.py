"""The Store: block files, space, publishing, recovery."""
