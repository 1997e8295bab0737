"""The mount: operations once, transports thin."""
