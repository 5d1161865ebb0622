"""`genrec checkpoint`: looks at a checkpoint that a build is to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from genrec.cli.arguments import numbers, usage
from genrec_builders.cli.arguments import markers

_MOST_CODES = 1_000_000  # of a level


def check(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder (Qwen2, Qwen3, Llama, Mistral), or a bundle.")],
    sid_tokens: Annotated[
        Optional[str], typer.Option(help="SID tokens per level in the tokenizer, e.g. '<a_{}>,<b_{}>,<c_{}>'.")
    ] = None,
    adapter: Annotated[
        Optional[Path], typer.Option(help="LoRA adapter of peft to merge, if it lies apart from the folder.")
    ] = None,
    item_markers: Annotated[
        Optional[str], typer.Option(help="Tokens around each item, e.g. '<|sid_begin|>,<|sid_end|>'.")
    ] = None,
    levels: Annotated[
        Optional[str],
        typer.Option(help="Codes per level, commas between; by default as many as the tokenizer has tokens for."),
    ] = None,
) -> None:
    """Say what `genrec build --checkpoint` would use of a checkpoint, drop or refuse, without loading it.

    Lines that begin with `use`, `new` (starts random, as asked for), `warning`, `drop` and `refuse`. With a refusal
    the exit status is 1.
    """
    from genrec.bundle import MANIFEST, Bundle
    from genrec_builders.training.checkpoint_facts import bundle_findings, read_facts, require_nothing_of_a_folder
    from genrec_builders.training.checkpoint_findings import NEW, Finding, require_usable
    from genrec_builders.training.checkpoint_tokens import (
        find_markers,
        match_sid_tokens,
        read_vocabulary,
        require_patterns,
        text_finding,
    )

    sizes = numbers("--levels", levels, int, least=1, most=_MOST_CODES) if levels is not None else None
    patterns = sid_tokens.split(",") if sid_tokens is not None else []
    with usage("--sid-tokens", sid_tokens or ""):
        require_patterns(patterns, len(sizes) if sizes is not None and patterns else None)
    around = markers(item_markers) if item_markers is not None else None
    if (folder / MANIFEST).exists():
        require_nothing_of_a_folder(folder, sid_tokens=patterns, adapter=adapter, item_markers=around)
        bundle = Bundle(folder)
        bundle.check()
        if sizes is not None and sizes != bundle.space.levels:
            raise ValueError(f"{folder}: has levels {bundle.space.levels}, not {sizes}")
        for finding in bundle_findings(bundle):
            typer.echo(str(finding))
        return

    def say(findings: list[Finding]) -> list[Finding]:
        for finding in findings:
            typer.echo(str(finding))
        return findings

    facts = read_facts(folder, adapter)
    findings = say(list(facts.findings))
    vocabulary = read_vocabulary(facts.tokenizer_folder, "--sid-tokens names tokens in it" if any(patterns) else "")
    if not patterns:
        findings += say([Finding(NEW, "no --sid-tokens: every code gets a new token with a random embedding")])
    matched, found = match_sid_tokens(vocabulary, facts.rows, patterns, sizes)
    ids = [number for level in matched for number in level.values()]
    _, beside = find_markers(vocabulary, facts.rows, around)
    findings += say([*found, *beside, *text_finding(vocabulary, facts.rows, ids)])
    require_usable(folder, findings)
