"""The LMDB index: rows, transactions, group commit."""
