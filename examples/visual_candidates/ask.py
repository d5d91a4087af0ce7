"""Request the candidates of a phrase or a person from the service, and print them with their keys.

Uses one URL of the service and no nearcast code.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

GENERATOR = "promoted-pins"


def main() -> None:
    arguments = parse_arguments()
    context = {"phrase": arguments.phrase} if arguments.person is None else {"person": arguments.person}
    body = {"context": context, "k": arguments.first, "fields": ["category"]}
    path = f"/v1/generators/{GENERATOR}/merged"
    print(f"POST {path} {json.dumps(body)}")
    show(ask(arguments.service + path, body))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Print the candidates of a phrase or a person, over HTTP.")
    parser.add_argument("service", help="URL, for example http://127.0.0.1:8080")
    known = parser.add_mutually_exclusive_group(required=True)
    known.add_argument("--phrase")
    known.add_argument("--person", type=int)
    parser.add_argument("--first", type=int, default=5, help="number of candidates (default 5)")
    return parser.parse_args()


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.URLError as error:
        sys.exit(f"{url} is not answered: {error}")


def show(answer: dict[str, Any]) -> None:
    """Print the keys with the largest weights, then the candidates, best first."""
    for share in answer["keys"][:3]:
        words = f"quota {share['promised']}, in the answer {share['given']}" if share["found"] else "not in the head"
        print(f"  key {share['key']:>6}  weight {share['weight']:.2f}  {words}")
    more = len(answer["keys"]) - 3
    print(f"  and {more} more keys" if more > 0 else "")
    for candidate in answer["candidates"]:
        keys = ", ".join(map(str, candidate["keys"][:3]))
        print(f"  {candidate['id']}  {candidate['category']:<10}  of {keys}")


if __name__ == "__main__":
    main()
