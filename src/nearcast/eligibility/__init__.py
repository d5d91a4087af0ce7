"""Eligibility rules: parse, check against the schemas, compile for the join, and apply at look-up."""

from __future__ import annotations

from nearcast.eligibility.compile import compile_rules
from nearcast.eligibility.compiled_folder import open_eligibility, save_eligibility
from nearcast.eligibility.nodes import Rule, collect_columns, item_only, request_time
from nearcast.eligibility.pair_reference import failing
from nearcast.eligibility.parse import parse_rule
from nearcast.eligibility.ruleset import RuleSet, serialize_rules
from nearcast.eligibility.validate import check_rules

__all__ = [
    "Rule",
    "RuleSet",
    "check_rules",
    "collect_columns",
    "compile_rules",
    "failing",
    "item_only",
    "open_eligibility",
    "parse_rule",
    "request_time",
    "save_eligibility",
    "serialize_rules",
]
