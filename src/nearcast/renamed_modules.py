"""Modules that were renamed: the old import path still works for one minor release, with a DeprecationWarning.

Delete this file, and the call of `install` in `nearcast/__init__.py`, in the second minor release after 0.1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["RENAMED", "install"]

# old module: new module
RENAMED = {
    "nearcast.expansion": "nearcast.ads",
    "nearcast.index": "nearcast.engines",
    "nearcast.surplus": "nearcast.overfetch",
    "nearcast.advising.ask": "nearcast.advising.recommend",
    "nearcast.advising.draw": "nearcast.advising.cost_charts",
    "nearcast.advising.head": "nearcast.advising.head_keys",
    "nearcast.advising.sample": "nearcast.advising.sample_data",
    "nearcast.api.given": "nearcast.api.arguments",
    "nearcast.cli.listen": "nearcast.cli.progress",
    "nearcast.cli.named": "nearcast.cli.show",
    "nearcast.cli.shared": "nearcast.cli.common",
    "nearcast.dashboard.brief": "nearcast.dashboard.series",
    "nearcast.dashboard.lists": "nearcast.dashboard.list_explorer",
    "nearcast.dashboard.samples": "nearcast.dashboard.sample_queries",
    "nearcast.dashboard.state": "nearcast.monitoring.status",
    "nearcast.dashboard.words": "nearcast.monitoring.alert",
    "nearcast.dashboard.write": "nearcast.dashboard.document",
    "nearcast.eligibility.check": "nearcast.eligibility.validate",
    "nearcast.eligibility.columns": "nearcast.eligibility.rule_columns",
    "nearcast.eligibility.faults": "nearcast.eligibility.nodes",
    "nearcast.eligibility.folder": "nearcast.eligibility.compiled_folder",
    "nearcast.eligibility.judge": "nearcast.eligibility.pair_reference",
    "nearcast.eligibility.kinds": "nearcast.eligibility.rule_types",
    "nearcast.eligibility.uses": "nearcast.eligibility.nodes",
    "nearcast.expansion.ads": "nearcast.table.ad_set",
    "nearcast.expansion.columns": "nearcast.table.ad_columns",
    "nearcast.expansion.funnel": "nearcast.ads.ad_funnel",
    "nearcast.expansion.links": "nearcast.table.item_links",
    "nearcast.expansion.merging": "nearcast.ads.ad_funnel",
    "nearcast.expansion.schema": "nearcast.table.expansion_schema",
    "nearcast.expansion.settings": "nearcast.table.expansion_settings",
    "nearcast.expansion.stored": "nearcast.table.load_expansion",
    "nearcast.expansion.targeting": "nearcast.ads.targeting",
    "nearcast.history.moves": "nearcast.history.publish_events",
    "nearcast.history.store": "nearcast.history.event_log",
    "nearcast.index.artifact": "nearcast.engines.index_folder",
    "nearcast.join.arrays": "nearcast.join.knn_join",
    "nearcast.join.attributes": "nearcast.sources.ingest",
    "nearcast.join.baseline": "nearcast.join.measure_snapshot",
    "nearcast.join.choose": "nearcast.join.select_candidates",
    "nearcast.join.conclude": "nearcast.join.commit_snapshot",
    "nearcast.join.constraints": "nearcast.join.compile_constraints",
    "nearcast.join.drifting": "nearcast.join.measure_snapshot",
    "nearcast.join.full_items": "nearcast.join.select_candidates",
    "nearcast.join.kept": "nearcast.measure.truth_folders",
    "nearcast.join.likes": "nearcast.measure.near_duplicates",
    "nearcast.join.listen": "nearcast.join.listener",
    "nearcast.join.measuring": "nearcast.measure.sampled_recall",
    "nearcast.join.online": "nearcast.join.online_index",
    "nearcast.join.plan": "nearcast.join.run_plan",
    "nearcast.join.preparing": "nearcast.join.validate_run",
    "nearcast.join.profiling": "nearcast.join.profile_inputs",
    "nearcast.join.quality": "nearcast.measure.list_quality",
    "nearcast.join.reasons": "nearcast.join.short_lists",
    "nearcast.join.scored": "nearcast.join.score_terms",
    "nearcast.join.search": "nearcast.join.single_search",
    "nearcast.join.stages": "nearcast.join.plan_join",
    "nearcast.join.surplus": "nearcast.join.plan_overfetch",
    "nearcast.join.today": "nearcast.join.current_tables",
    "nearcast.join.truth": "nearcast.measure.truth",
    "nearcast.kernels.lists": "nearcast.kernels.rescore",
    "nearcast.kernels.rounding": "nearcast.kernels.quantize",
    "nearcast.kernels.rules": "nearcast.kernels.rule_blocks",
    "nearcast.kernels.twins": "nearcast.kernels.numpy_fallback",
    "nearcast.knn.copies": "nearcast.knn.identical_vectors",
    "nearcast.knn.exact": "nearcast.knn.exact_join",
    "nearcast.knn.renew": "nearcast.knn.update_lists",
    "nearcast.mapped": "nearcast.artifact_files",
    "nearcast.monitoring.causes": "nearcast.monitoring.root_causes",
    "nearcast.monitoring.draw": "nearcast.monitoring.history_chart",
    "nearcast.monitoring.served": "nearcast.monitoring.staleness",
    "nearcast.monitoring.standing": "nearcast.monitoring.status",
    "nearcast.monitoring.survivors": "nearcast.monitoring.recall_today",
    "nearcast.monitoring.usual": "nearcast.monitoring.expected_range",
    "nearcast.monitoring.watch": "nearcast.monitoring.monitor_pass",
    "nearcast.monitoring.words": "nearcast.monitoring.alert",
    "nearcast.parquet": "nearcast.artifact_files",
    "nearcast.publishing.cutback": "nearcast.publishing.compact_overlay",
    "nearcast.publishing.expansion": "nearcast.ads.publish_expansion",
    "nearcast.publishing.findings": "nearcast.publishing.audit_values",
    "nearcast.publishing.listing": "nearcast.publishing.store_listing",
    "nearcast.publishing.load": "nearcast.publishing.copy_snapshot",
    "nearcast.publishing.readable": "nearcast.publishing.write_version",
    "nearcast.publishing.readback": "nearcast.publishing.write_version",
    "nearcast.publishing.retain": "nearcast.publishing.retention",
    "nearcast.publishing.rows": "nearcast.publishing.snapshot_rows",
    "nearcast.publishing.rules": "nearcast.publishing.audit_rules",
    "nearcast.publishing.tables": "nearcast.publishing.publish_table",
    "nearcast.publishing.times": "nearcast.times",
    "nearcast.publishing.where": "nearcast.publishing.targets",
    "nearcast.publishing.throttle": "nearcast.publishing.copy_snapshot",
    "nearcast.publishing.writing": "nearcast.publishing.write_version",
    "nearcast.replaying.compared": "nearcast.replaying.candidate_sources",
    "nearcast.replaying.draw": "nearcast.replaying.funnel_chart",
    "nearcast.replaying.funnel": "nearcast.replaying.request_funnel",
    "nearcast.replaying.log": "nearcast.replaying.request_log",
    "nearcast.replaying.ways": "nearcast.replaying.candidate_sources",
    "nearcast.serve.ads_table": "nearcast.ads.ads_view",
    "nearcast.serve.answers": "nearcast.serve.lookup_data",
    "nearcast.serve.app": "nearcast.service.app",
    "nearcast.serve.attributes": "nearcast.serve.table_version",
    "nearcast.serve.connection": "nearcast.service.connection",
    "nearcast.serve.cuts": "nearcast.serve.view",
    "nearcast.serve.docs_page": "nearcast.service.openapi",
    "nearcast.serve.expansion": "nearcast.ads.expansion_table",
    "nearcast.serve.fallback": "nearcast.service.fallback",
    "nearcast.serve.keys": "nearcast.serve.lookup_data",
    "nearcast.serve.limits": "nearcast.service.app",
    "nearcast.serve.merge": "nearcast.serve.merge_lists",
    "nearcast.serve.merged": "nearcast.serve.merged_lookup",
    "nearcast.serve.merged_shapes": "nearcast.service.request_schemas",
    "nearcast.serve.metrics": "nearcast.service.metrics",
    "nearcast.serve.online": "nearcast.service.online_search",
    "nearcast.serve.pages": "nearcast.service.endpoint",
    "nearcast.serve.plain": "nearcast.service.response_schemas",
    "nearcast.serve.prepared": "nearcast.service.endpoint",
    "nearcast.serve.promoted": "nearcast.ads.ad_answer",
    "nearcast.serve.replies": "nearcast.service.responses",
    "nearcast.serve.sampling": "nearcast.serve.key_sampling",
    "nearcast.serve.server": "nearcast.service.server",
    "nearcast.serve.service": "nearcast.service.generator_service",
    "nearcast.serve.shapes": "nearcast.service.request_schemas",
    "nearcast.serve.shapes_ads": "nearcast.service.request_schemas",
    "nearcast.serve.tables": "nearcast.serve.weight_lookups",
    "nearcast.serve.two_steps": "nearcast.service.generator_service",
    "nearcast.serve.watch": "nearcast.serve.follow_store",
    "nearcast.sources.check": "nearcast.sources.validate_rows",
    "nearcast.sources.listing": "nearcast.sources.parquet_listing",
    "nearcast.sources.rows": "nearcast.sources.row_source",
    "nearcast.stores.facts": "nearcast.stores.version_facts",
    "nearcast.stores.nearest": "nearcast.stores.version_facts",
    "nearcast.stores.tables": "nearcast.stores.names",
    "nearcast.stores.values": "nearcast.stores.value_format",
    "nearcast.surplus.budget": "nearcast.overfetch.budget",
    "nearcast.surplus.learn": "nearcast.overfetch.survival",
    "nearcast.surplus.log": "nearcast.overfetch.survival_log",
    "nearcast.surplus.plan": "nearcast.overfetch.candidates_needed",
    "nearcast.surplus.reach": "nearcast.overfetch.survivor_probability",
    "nearcast.table.schema": "nearcast.table.candidate_schema",
    "nearcast.table.write": "nearcast.table.write_table",
    "nearcast.tuning.cost": "nearcast.tuning.job_cost",
    "nearcast.tuning.draw": "nearcast.tuning.frontier_chart",
    "nearcast.tuning.samples": "nearcast.tuning.tuning_samples",
    "nearcast.tuning.search": "nearcast.tuning.optimize",
    "nearcast.tuning.tuned": "nearcast.tuning.tuning_result",
    "nearcast.tuning.work": "nearcast.tuning.scaling",
}


class _Redirect(Loader):
    """Loader that returns the new module under the old name."""

    def exec_module(self, module: ModuleType) -> None:
        new = RENAMED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}; import that", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


class _Finder(MetaPathFinder):
    """Finder of the old names; other finders handle every other name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Redirect()) if fullname in RENAMED else None


def install() -> None:
    """Make the old names importable. Has no effect when called again."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
