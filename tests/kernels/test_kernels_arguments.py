"""What a native kernel cannot take is a ValueError that says what does not fit, and never a read out of bounds."""

import numpy as np
import pytest
from tests.kernels import fuzz
from tests.kernels.vectors import join_exact

from nearcast.kernels import isa as isa_module
from nearcast.kernels import quantize
from nearcast.knn.constraints import Cap, Constraints

N, M, D = 5, 40, 8
RNG = np.random.default_rng(12)
QUERIES, ITEMS = (RNG.standard_normal((rows, D)).astype(np.float32) for rows in (N, M))
ROTATION = quantize.make_rotation(ITEMS, "l2")
NO_ITEM = int(quantize.NO_ITEM)


def native():
    return isa_module.native()


def packed_arrays(**changes):
    codes = quantize.round_vectors(ITEMS, ROTATION, 127, "portable", 1)
    order, tiles = quantize.order_in_blocks(np.arange(M) // 20, codes.residuals, 2)
    packed = quantize.pack_items(codes, order, tiles, quantize.l2_offsets(codes, "l2"), "portable", 1)
    names = ("codes", "scales", "offsets", "order", "block_tiles", "block_norms", "block_residuals", "block_offsets")
    arrays = {name: getattr(packed, name).copy() for name in names} | {"width": packed.width}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    return native().PackedArrays(**arrays)


def query_arrays(**changes):
    codes = quantize.round_vectors(QUERIES, ROTATION, 63, "portable", 1)
    arrays = {"codes": codes.codes, "starts": -128 * codes.codes.sum(axis=1, dtype=np.int32)}
    arrays |= {name: getattr(codes, name) for name in ("scales", "residuals", "norms")}
    for name, change in changes.items():
        arrays[name] = change if isinstance(change, np.ndarray) else change(arrays[name])
    return native().QueryArrays(*arrays.values())


def joined(packed=None, rounded=None, **changes):
    rest = {"queries": QUERIES, "items": ITEMS, "item_norms": None, "exclude": None, "k": 3, "per_job": 10}
    rest |= {"metric": 2, "probes": None, "rule": None, "caps": [], "thresholds": None, "error_share": 1.0} | changes
    return native().join(
        *("portable", rest["metric"], rest["queries"], rest["items"], rounded or query_arrays()),
        *(packed or packed_arrays(), rest["item_norms"], rest["exclude"], rest["k"], 1, rest["per_job"], False),
        *(rest["probes"], rest["rule"], rest["caps"], -np.inf, rest["thresholds"], rest["error_share"], None),
    )


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


def short(array):
    return array[:-1]


PACKED = {  # what is wrong with packed items, and the words that say so
    "codes": (short, "codes has"),
    "scales": (short, "scales has"),
    "offsets": (short, "offsets has"),
    "order": (short, "whole tiles"),
    "block_norms": (short, "block_tiles has"),
    "block_residuals": (short, "block_residuals has"),
    "width": (lambda width: width + 16 + 64, "codes has|width is"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_items_of_other_sizes_are_refused(name):
    change, words = PACKED[name]
    with pytest.raises(ValueError, match=words):
        packed_arrays(**{name: change})


def test_packed_items_with_impossible_contents_are_refused():
    with pytest.raises(ValueError, match="must begin at 0 or above, ascend"):
        packed_arrays(block_tiles=put(1, 1000))
    with pytest.raises(ValueError, match="NaN where there is no item"):
        packed_arrays(scales=lambda scales: np.nan_to_num(scales, nan=1.0))
    with pytest.raises(ValueError, match="items that are not there"):
        joined(packed_arrays(order=put(0, M)))


def test_arrays_written_to_after_an_object_was_made_are_noticed_in_the_call():
    codes = quantize.round_vectors(ITEMS, ROTATION, 127, "portable", 1)
    order, tiles = quantize.order_in_blocks(np.zeros(M, np.int64), codes.residuals, 1)
    packed = quantize.pack_items(codes, order, tiles, quantize.l2_offsets(codes, "l2"), "portable", 1)
    assert joined(packed.native)[0].shape == (N, 3)
    order[0] = 3_000_000
    with pytest.raises(ValueError, match="items that are not there"):
        joined(packed.native)


def test_queries_that_do_not_fit_are_refused():
    for name in ("starts", "scales", "residuals", "norms"):
        with pytest.raises(ValueError, match=f"{name} has 4 values; needed are 5"):
            query_arrays(**{name: short})
    with pytest.raises(ValueError, match="no sums of codes"):
        query_arrays(starts=put(0, 2**31 - 1))
    for order in ([0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [0, 1]):
        with pytest.raises(ValueError, match=r"must name each row once|order has 2 values"):
            query_arrays(order=np.array(order, np.uint32))
    with pytest.raises(ValueError, match="other codes than queries"):
        joined(queries=QUERIES[:3])
    with pytest.raises(ValueError, match="differ in dimensions"):
        joined(queries=QUERIES[:, :5].copy())


ARGUMENTS = {
    "k of none": ({"k": 0}, "k is out of range"),
    "k of too many": ({"k": 2**40}, "k is out of range"),
    "no queries per job": ({"per_job": 0}, "queries_per_job"),
    "no such metric": ({"metric": 3}, "metric must be"),
    "cosine without norms": ({"metric": 1}, "item_norms is missing"),
    "cosine with other norms": ({"metric": 1, "item_norms": np.ones(M - 1)}, "item_norms has"),
    "exclusions of other queries": ({"exclude": np.zeros(N + 1, np.int64)}, "exclude has"),
    "no share of the error": ({"error_share": 0.0}, "error_share"),
    "more than the whole error": ({"error_share": 1.5}, "error_share"),
    "fewer items than the order asks for": ({"items": ITEMS[:7]}, "items that are not there"),
}


@pytest.mark.parametrize(("changes", "words"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_of_a_join_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        joined(**changes)


STEPS = {
    "a leaf that is not there": ([(0, 1)], "leaf that is not there"),
    "a negative leaf": ([(0, -1)], "negative count"),
    "more parts than results": ([(0, 0), (1, 2)], "more results than there are"),
    "two results": ([(0, 0), (0, 0)], "no single result"),
    "no such step": ([(7, 0)], "neither a leaf nor"),
    "seventy waiting": ([(0, 0)] * 70 + [(1, 70)], "too deep"),
}


@pytest.mark.parametrize(("steps", "words"), STEPS.values(), ids=STEPS.keys())
def test_programs_that_leave_no_result_are_refused(steps, words):
    places, blocks, zeros = 48, 2, np.zeros
    leaf = native().LeafArrays(
        0,
        codes=zeros(places, np.int32),
        low=zeros(N, np.int32),
        high=zeros(N, np.int32),
        block_low=zeros(blocks, np.int32),
        block_high=zeros(blocks, np.int32),
    )
    with pytest.raises(ValueError, match=words):
        native().RuleArrays([leaf], steps, [], zeros(N, np.uint8), places)


def test_lists_positions_and_groups_out_of_range_are_refused(native_isa):
    norms = np.empty(0)
    for starts, positions in (([0, 9], [1]), ([1, 0], [1]), ([0, 1], [M])):
        with pytest.raises(ValueError, match=r"must begin at|there are 40 rows"):
            native().score_lists(
                *(native_isa, 0, QUERIES[:1], ITEMS, np.array(starts, np.uint64)),
                *(np.array(positions, np.uint32), norms, 1),
            )
        with pytest.raises(ValueError, match=r"must begin at|there are 40 rows"):
            native().cell_sums(native_isa, ITEMS, np.array(starts, np.uint64), np.array(positions, np.uint32), False, 1)
    with pytest.raises(ValueError, match="n_groups is too small"):
        native().CapArrays(np.array([0, 5], np.int32), 3, 1)
    with pytest.raises(ValueError, match="no such item"):
        native().pack(np.zeros((3, 16), np.int8), np.full(16, 3, np.uint32), 1)
    with pytest.raises(ValueError, match="width is 4"):
        native().pack(np.zeros((3, 4), np.int8), np.full(16, NO_ITEM, np.uint32), 1)
    with pytest.raises(ValueError, match="a strip holds"):
        native().interval_masks(native_isa, np.zeros(0, np.int32), np.zeros(2, np.int32), np.zeros(2, np.int32))


def test_groups_with_gaps_and_a_k_far_above_all_items_cost_no_memory(isa):
    groups = np.array([2**31 - 1, -1, 7, 2**31 - 1], np.int32)
    items = np.arange(4, dtype=np.float32)[:, None]
    found = join_exact(items[3:], items, 2_000_000, "inner_product", constraints=Constraints(caps=(Cap(groups, 1),)))
    assert found.positions[0, :5].tolist() == [3, 2, 1, -1, -1]
    assert found.positions.shape == (1, 2_000_000)


def test_addresses_that_are_no_multiple_of_an_element_are_refused_or_copied(native_isa):
    raw = np.zeros(ITEMS.nbytes + 1, np.uint8)
    moved = raw[1:].view(np.float32).reshape(ITEMS.shape)
    moved[...] = ITEMS
    with pytest.raises(ValueError, match="not aligned"):
        native().norms(native_isa, moved, 1)
    same = join_exact(QUERIES, ITEMS, 3, "l2").positions
    np.testing.assert_array_equal(join_exact(QUERIES, moved, 3, "l2").positions, same)


@pytest.mark.parametrize("name", fuzz.ENTRY_POINTS)
def test_a_moment_of_random_and_hostile_arguments_finds_nothing(name, monkeypatch):
    monkeypatch.setenv(isa_module.ISA_VARIABLE, "")  # one entry point sets it
    with np.errstate(all="ignore"):
        counts = fuzz.fuzz(name, 0.3, seed=1)
    assert counts["WRONG"] == 0
    assert counts.total() > 0


def test_every_native_function_that_takes_arguments_is_fuzzed():
    functions = {name for name, value in vars(native()).items() if callable(value) and not isinstance(value, type)}
    assert functions - {"isa_statuses"} == set(fuzz.ENTRY_POINTS) - {"build_index"}


def test_objects_of_every_native_class_are_fuzzed(monkeypatch):
    used = set()

    class Recorder:
        def __getattr__(self, name):
            used.add(name)
            return getattr(native(), name)

    monkeypatch.setattr(fuzz, "native", Recorder())
    rng = np.random.default_rng(3)
    for name in ("join", "nearest_centres", "eligible_counts"):
        for _ in range(8):
            fuzz.ENTRY_POINTS[name](rng, "portable")[0].make()
    assert used >= {name for name, value in vars(native()).items() if isinstance(value, type)}
