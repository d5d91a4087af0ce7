"""Storage beyond one machine: the contract is in `base.py`; local folders and object stores have a file each."""
