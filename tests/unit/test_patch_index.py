"""The index of patched keys names the newest patch with a key, however it was built."""

from __future__ import annotations

from zlib import crc32

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.stores.patch_index import PatchIndex, decode_hashes, encode_hashes, hash_keys

KEYS = st.binary(min_size=1, max_size=3)
PARTS = st.lists(st.lists(KEYS, max_size=30), max_size=12)


def hash_parts(parts):
    return [decode_hashes(encode_hashes(hash_keys(part))) for part in parts]


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, cuts=st.lists(st.integers(0, 12), max_size=3), others=st.lists(KEYS, max_size=10))
def test_an_index_that_grows_names_the_newest_patch_with_a_key(parts, cuts, others):
    index, start = PatchIndex.build([]), 0
    for stop in [*sorted(cuts), len(parts)]:
        stop = max(start, min(stop, len(parts)))
        index, start = index.replace_parts(hash_parts(parts[start:stop]), start + 1, start + 1), stop
    newest = {crc32(key): number for number, part in enumerate(parts, 1) for key in part}
    keys = [*{key for part in parts for key in part}, *others]
    assert [index.find(key) for key in keys] == [newest.get(crc32(key), 0) for key in keys]
    assert index.find_many(keys).tolist() == [newest.get(crc32(key), 0) for key in keys]
    assert len(index) == len(newest)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, others=PARTS, edges=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_patches_in_place_of_others_give_the_index_that_is_built_of_all(parts, others, edges):
    start, stop = sorted(min(edge, len(parts)) for edge in edges)
    for fresh in (others, [[key for part in parts[start:stop] for key in part]]):  # any, or one with all their keys
        after = [*parts[:start], *fresh, *parts[stop:]]
        built = PatchIndex.build(hash_parts(after))
        changed = PatchIndex.build(hash_parts(parts)).replace_parts(hash_parts(fresh), start + 1, stop + 1)
        kept = {key for part in fresh for key in part}
        newest = {crc32(key): number for number, part in enumerate(parts) for key in part}
        is_lost = any(start <= number < stop for number in newest.values())
        if changed is None:
            assert is_lost
            assert fresh is others
            continue
        keys = [*{key for part in after for key in part}, *kept, b"none of them"]
        assert changed.find_many(keys).tolist() == built.find_many(keys).tolist()
        assert [changed.find(key) for key in keys] == [built.find(key) for key in keys]
        assert len(changed) == len(built)


def test_an_index_of_many_keys_finds_all_of_them():
    keys = [number.to_bytes(4, "big") for number in range(100_000)]
    index = PatchIndex.build(hash_parts([keys[:60_000]])).replace_parts(hash_parts([keys[40_000:]]), 2, 2)
    expected = np.where(np.arange(100_000) < 40_000, 1, 2)
    assert (index.find_many(keys) == expected).mean() > 0.999  # some keys share a hash
    assert [index.find(key) for key in keys[::10_000]] == index.find_many(keys[::10_000]).tolist()
