"""Scores that cannot tell items apart are named, with the likely cause, wherever a join is reported."""

import logging

import numpy as np
import pytest
from tests.end_to_end import shop as at

import nearcast
from nearcast.measure.ties import tie_warning, tied_share
from nearcast.types import Metric

RNG = np.random.default_rng(11)
PLAIN = RNG.standard_normal((300, 8))
TIED = {  # vectors, metric, the cause that is named
    "too short for a squared distance": (PLAIN * 1e-26, "l2", "below what float32 holds"),
    "too short for a product": (PLAIN * 1e-24, "inner_product", "below what float32 holds"),
    "one vector, many times": (np.repeat(PLAIN[:1], 300, axis=0), "cosine", "nearly the same"),
    "nearly the same direction": (1.0 + PLAIN * 1e-9, "cosine", "nearly the same"),
    "a large common offset": (1e7 + PLAIN, "inner_product", "large offset"),
    "an offset that swallows the vectors": (1e9 + PLAIN, "l2", "below what float32 holds|nearly the same"),
}
APART = {
    "plain": (PLAIN, "l2"),
    "short": (PLAIN * 1e-17, "l2"),
    "short, by direction": (PLAIN * 1e-40, "cosine"),
    "an offset that distances do not feel": (1e4 + PLAIN, "l2"),
    "a few copies": (np.concatenate([PLAIN, PLAIN[:40]]), "inner_product"),
}


@pytest.mark.parametrize(("vectors", "metric", "cause"), TIED.values(), ids=TIED.keys())
def test_scores_that_tie_are_named_with_the_cause(vectors, metric, cause):
    report = nearcast.knn_join(vectors[:40], vectors, k=10, metric=metric).report
    (warning,) = report.warnings
    assert "cannot tell items apart" in warning
    assert any(words in warning for words in cause.split("|")), warning


@pytest.mark.parametrize(("vectors", "metric"), APART.values(), ids=APART.keys())
def test_scores_that_differ_are_not(vectors, metric):
    assert nearcast.knn_join(vectors[:40], vectors, k=10, metric=metric).report.warnings == ()


def test_empty_slots_and_first_candidates_do_not_count():
    scores = np.array([[2.0, 2.0, 1.0], [5.0, -np.inf, -np.inf], [-np.inf] * 3], np.float32)
    assert tied_share(scores) == 0.5
    assert tied_share(np.empty((0, 3), np.float32)) == 0.0
    assert tie_warning(0.5, scores, Metric.L2) is None


@pytest.mark.parametrize("k", [1, 10])
def test_the_summary_of_a_run_warns_and_the_manifest_keeps_it(tmp_path, caplog, k):
    at.write_rows(tmp_path / "items.parquet", list(range(300)), list((PLAIN * 1e-26).astype(np.float32)))
    spec = {"name": "short", "metric": "l2", "k": k, "memory": "2GB", "threads": 1, "items": {"path": "items.parquet"}}
    with caplog.at_level(logging.INFO):
        manifest = nearcast.run(spec, base=tmp_path).snapshot.manifest.as_dict()
    assert manifest["measures"]["score_ties"] == 1.0
    assert "multiply the vectors" in manifest["ties"]
    assert "cannot tell items apart" in caplog.text
    shown = at.succeed("show", "short", cwd=tmp_path)
    assert "cannot tell items apart" in " ".join((shown.stdout + shown.stderr).split())
