"""The command line: `genrec-client recommend` and `genrec-client ready`.

Exit codes: 0 an answer, 1 an error of the server or on the way to it, 2 a command that cannot be understood.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from genrec_client.arguments import LONGEST_S
from genrec_client.channel import TlsOptions
from genrec_client.errors import RecommendError
from genrec_client.recommendations import Recommendations
from genrec_client.recommender import Recommender

OK, SERVER_ERROR, BAD_USAGE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """One line on stderr instead of the usage and the error."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: {message} (see --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a usage error or --help ends in SystemExit, as argparse does."""
    arguments = _parser().parse_args(argv)
    try:
        tls: bool | TlsOptions = arguments.tls
        files = arguments.ca_file, arguments.cert_file, arguments.key_file
        if any(path is not None for path in files):
            tls = TlsOptions(*files)
        recommender = Recommender(
            arguments.url, model=arguments.model, timeout_s=arguments.timeout_ms / 1e3, tls=tls, token=_token(arguments)
        )
    except (ValueError, OSError) as error:
        return _complain(str(error), BAD_USAGE)
    with recommender:
        return int(arguments.run(recommender, arguments))


def _token(arguments: argparse.Namespace) -> str | None:
    """No option holds it: others on the machine see a command's options."""
    if arguments.token_file is None:
        return os.environ.get("GENREC_TOKEN") or None
    return Path(arguments.token_file).read_text("utf-8").strip()


def _recommend(recommender: Recommender, arguments: argparse.Namespace) -> int:
    try:
        answer = recommender.recommend(
            _ids(arguments.history),
            top_k=arguments.top_k,
            exclude=None if arguments.exclude is None else _ids(arguments.exclude),
            allow_history=True if arguments.allow_history else None,
            query=arguments.query,
            rules=arguments.rules,
            sheddable=True if arguments.sheddable else None,
        )
    except RecommendError as error:
        return _complain(str(error), SERVER_ERROR if error.attempts else BAD_USAGE)
    print(_json(answer) if arguments.json else _table(answer))
    return OK


def _ready(recommender: Recommender, arguments: argparse.Namespace) -> int:
    found = recommender.readiness()
    for address in found:
        if address.ready:
            print(f"{address.url}: ready")
    missing = "; ".join(f"{address.url}: {address.message}" for address in found if not address.ready)
    return _complain(missing, SERVER_ERROR) if missing else OK


def _ids(text: str) -> list[str | bytes]:
    """Ids with commas between them, or for "-" one on each line of stdin, as the bytes they are."""
    if text == "-":
        return [line for line in sys.stdin.buffer.read().splitlines() if line]
    return [item for item in text.split(",") if item]


def _json(answer: Recommendations) -> str:
    fields = asdict(answer)
    for item, recommended in zip(fields["items"], answer.items, strict=True):
        item["source"] = recommended.source.name.lower()
    return json.dumps(fields, indent=2)


def _table(answer: Recommendations) -> str:
    rows = [("rank", "item", "score", "source")]
    for rank, item in enumerate(answer.items, 1):
        rows.append((str(rank), _printable(item.item_id), f"{item.score:.4f}", item.source.name.lower()))
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{rank:>{width[0]}}  {item:<{width[1]}}  {score:>{width[2]}}  {source}" for rank, item, score, source in rows
    ]
    lines.append(
        f"bundle {_printable(answer.bundle_version)}, catalogue {_printable(answer.catalog_version)}; "
        f"{answer.drafted} drafted, {answer.valid} valid, {answer.filled} filled, "
        f"{answer.unknown_history} unknown in the history; "
        f"{answer.latency_ms:.1f} ms, attempts: {answer.attempts}"
    )
    if answer.explanation is not None:
        # As JSON has it: what is not ASCII is escaped.
        lines.append(f"explanation {json.dumps(answer.explanation)}")
    return "\n".join(lines)


def _rules(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: cannot be read: {error}") from None


def _milliseconds(text: str) -> float:
    milliseconds = float(text)
    if not 0 < milliseconds < LONGEST_S * 1e3:
        raise argparse.ArgumentTypeError(f"{text!r}: give milliseconds above 0 and below {LONGEST_S * 1000}")
    return milliseconds


def _printable(text: str) -> str:
    """Ids come from a catalogue: one with control characters must not reach the terminal as such."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _complain(message: str, code: int) -> int:
    print(f"genrec-client: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="genrec-client", description="Ask a genrec-triton server for recommendations.")
    commands = parser.add_subparsers(required=True, metavar="command")

    shared = _Parser(add_help=False)
    shared.add_argument("--url", default="localhost:8001", help="gRPC addresses, commas between (default: %(default)s)")
    shared.add_argument("--model", default="recommend", help="model name (default: %(default)s)")
    shared.add_argument(
        "--timeout-ms", type=_milliseconds, default=1000.0, help="time for it all (default: %(default)s)"
    )
    shared.add_argument("--tls", action="store_true", help="encrypt, with the system's certificates")
    shared.add_argument("--ca-file", help="PEM certificates to check the server's against; implies --tls")
    shared.add_argument("--cert-file", help="PEM certificate of this client")
    shared.add_argument("--key-file", help="PEM private key of this client")

    shared.add_argument("--token-file", help="file with the token for a server that asks for one; else GENREC_TOKEN")

    recommend = commands.add_parser("recommend", parents=[shared], help="recommend items to one user")
    recommend.add_argument(
        "--history", required=True, help="item ids, oldest first, commas between; '' for none; - reads one a line"
    )
    recommend.add_argument("--top-k", type=int, help="items wanted")
    recommend.add_argument("--exclude", help="item ids never to return, commas between")
    recommend.add_argument("--allow-history", action="store_true", help="items of the history may come back")
    recommend.add_argument("--query", help="text query, for bundles that were trained with one")
    recommend.add_argument("--rules", type=_rules, help="rules of the shop: JSON text, or @FILE that holds it")
    recommend.add_argument(
        "--sheddable", action="store_true", help="a server with too many requests may refuse it first"
    )
    recommend.add_argument("--json", action="store_true", help="print JSON instead of a table")
    recommend.set_defaults(run=_recommend)

    ready = commands.add_parser("ready", parents=[shared], help="exit with 0 when every address has the model ready")
    ready.set_defaults(run=_ready)
    return parser


if __name__ == "__main__":
    sys.exit(main())
