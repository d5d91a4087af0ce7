#!/usr/bin/env bash
# Similar products from grocery purchases: learn vectors, join, look, measure the hit rate, publish and serve.
set -euo pipefail
cd "$(dirname "$0")"

echo "== 1. Learn product vectors from the purchases of weeks 1-48"
python prepare.py
echo
echo "== 2. nearcast run: find the 50 nearest products of every product"
nearcast run generator.toml
snapshot=$(nearcast show --json | python -c 'import json, sys; print(json.load(sys.stdin)["snapshot"])')
echo
echo "== 3. Five products and their nearest products"
python show.py "$snapshot"
echo
echo "== 4. Hit rate: the share of the purchases of weeks 49-53 that are among the candidates"
python hit_rate.py "$snapshot"
./serve.sh
echo
page=$(nearcast dashboard --json | python -c 'import json, os, sys; print(os.path.abspath(json.load(sys.stdin)["file"]))')
echo "A page with all figures and lists: open file://$page in a browser"
echo "Another list: nearcast lookup similar-products 1082185 --out examples/similar_products/nearcast"
