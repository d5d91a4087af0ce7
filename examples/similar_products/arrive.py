"""Write a file with one new product: the vector of a product that is sold already, under a new id and name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Parquet file with one new product.")
    parser.add_argument("like", type=int, help="product whose vector it has")
    parser.add_argument("new", type=int, help="id of the new product")
    parser.add_argument("name", help="name of the new product")
    parser.add_argument("--products", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.products)
    row = table.filter(pc.equal(table.column("product_id"), arguments.like))
    for column, value in (("product_id", arguments.new), ("name", arguments.name)):
        kind = table.schema.field(column).type
        row = row.set_column(row.schema.get_field_index(column), column, pa.array([value], kind))
    pq.write_table(row, arguments.out)


if __name__ == "__main__":
    main()
