"""Ranking models in ONNX files. Columns fill the inputs of equal name. Only this module imports onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import MissingExtraError, SpecError

__all__ = ["onnx_ranker"]

DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


def onnx_ranker(model: Path | bytes, path: str) -> Callable[[pa.RecordBatch], Any]:
    """Return a function that scores a batch of pairs by the model's first output.

    model: the file or its contents. A model with data in other files must be a file. path: its name for messages.
    Raises MissingExtraError without onnxruntime, SpecError for an unreadable file or an input of another type.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is run by onnxruntime, which is not installed: pip install 'nearcast[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order: the same scores on any machine of a kind
    options.log_severity_level = 4  # its errors become ours
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises many classes without a common base
        raise SpecError(f"rank.model: {path} cannot be read by onnxruntime: {error}") from error
    inputs = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    for name, (kind, _) in inputs.items():
        if kind not in DTYPES:
            raise SpecError(f"rank.model: input {name!r} of {path} is a {kind}; inputs are {', '.join(DTYPES)}")
    output = session.get_outputs()[0].name

    def rank(batch: pa.RecordBatch) -> Any:
        feed = {name: _fill_input(batch, name, *shape) for name, shape in inputs.items()}
        return session.run([output], feed)[0]

    return rank


def _fill_input(batch: pa.RecordBatch, name: str, kind: str, dimensions: int) -> Any:
    """Return a column as the model's input: (rows,), (rows, 1) or (rows, dim)."""
    if name not in batch.schema.names:
        raise SpecError(f"rank.model needs the input {name!r}, and a pair has {', '.join(batch.schema.names)}")
    column = batch.column(name)
    if pa.types.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    else:
        values = column.to_numpy(zero_copy_only=False)
        values = values[:, None] if dimensions == 2 else values
    return np.ascontiguousarray(values, DTYPES[kind])
