"""Storage of files beyond one machine: the contract is in `base.py`, local folders and object stores in one file each."""
