"""Sockets, handlers and workers."""
