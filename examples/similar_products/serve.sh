#!/usr/bin/env bash
# Publish a snapshot, serve it, remove a product, publish a newer snapshot, roll back, and add a product.
# Needs a snapshot: demo.sh makes one, and runs this script.
set -euo pipefail
cd "$(dirname "$0")"

generator=similar-products
product=${1:-1028816}   # an avocado
log=nearcast/serve.log
service=

stop() {
    if [ -n "$service" ]; then
        kill "$service" 2>/dev/null || true
        wait "$service" 2>/dev/null || true
        service=
    fi
}
trap stop EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }

newest() { nearcast show "$generator" --json | python -c 'import json, sys; print(json.load(sys.stdin)["version"])'; }

say "5. nearcast publish: audit the snapshot, copy it to a store, verify the copy, make it current"
first=$(newest)
nearcast publish "$generator" "$first" --quiet   # by its number: the demo may have rolled back from it before

say "6. nearcast serve: candidates over HTTP"
nearcast serve "$generator" --port 0 --drain 0.2 2> "$log" &
service=$!
for _ in $(seq 300); do
    url=$(sed -n 's/^serving .* on \(http:.*\)$/\1/p' "$log")
    [ -n "$url" ] && break
    kill -0 "$service" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
echo "GET $url/v1/generators/$generator/candidates/$product?k=5&fields=name"
python ask.py "$url" "$product"

removed=$(python ask.py "$url" "$product" --best)
say "7. nearcast overlay: remove its first candidate, $removed, from every answer for ten minutes"
nearcast overlay "$generator" remove "$removed" --for 10m --note "out of stock"
python ask.py "$url" "$product" --without "$removed"

say "8. Two weeks later: learn from two more weeks, run, publish. The service answers from the new snapshot"
python prepare.py --learn-until 50 --out data/newer
nearcast run newer.toml --quiet > nearcast/run.log
nearcast publish "$generator" --quiet
second=$(newest)
python ask.py "$url" "$product" --snapshot "$(printf %06d "$second")" --without "$removed"

say "9. nearcast rollback: make the first snapshot current again. The removed product stays removed"
nearcast rollback "$generator" --quiet
python ask.py "$url" "$product" --snapshot "$(printf %06d "$first")" --without "$removed"

say "10. nearcast update: publish the second snapshot again, then add a new product while the service runs"
nearcast publish "$generator" "$second" --quiet
new=99000001
python arrive.py "$product" "$new" "AVOCADO FROM THE NEW GROWER" --products data/newer/products.parquet \
    --out data/arrived.parquet
nearcast update "$generator" --items data/arrived.parquet --quiet
python ask.py "$url" "$product" --first 8 --with "$new" --without "$removed"

stop
echo
echo "The service: $(tail -n 1 "$log")"
