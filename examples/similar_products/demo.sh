#!/usr/bin/env bash
# Similar products from real grocery purchases: learn vectors, join, look, measure the hit rate, publish and serve.
set -euo pipefail
cd "$(dirname "$0")"

echo "== 1. Learn product vectors from the purchases of weeks 1-48"
python prepare.py
echo
echo "== 2. nearcast run generator.toml: the 50 nearest products of every product"
nearcast run generator.toml
snapshot=$(nearcast show --json | python -c 'import json, sys; print(json.load(sys.stdin)["snapshot"])')
echo
echo "== 3. Five products, and what is nearest to them"
python show.py "$snapshot"
echo
echo "== 4. Engagement hit rate: are the products of weeks 49-53 among the candidates?"
python hit_rate.py "$snapshot"
./serve.sh
echo
page=$(nearcast dashboard --json | python -c 'import json, os, sys; print(os.path.abspath(json.load(sys.stdin)["file"]))')
echo "The page, with every figure and list: open file://$page in a browser"
echo "Look further: nearcast lookup similar-products 1082185 --out examples/similar_products/nearcast"
