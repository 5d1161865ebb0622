"""Arguments that several commands take, and what judges the values of options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional, TypeVar

import typer

Number = TypeVar("Number", int, float)

BundlePath = Annotated[Path, typer.Argument(help="A bundle: the folder that `genrec build` writes.")]

PublicKey = Annotated[
    Optional[Path],
    typer.Option(
        "--public-key",
        help="PEM of an Ed25519 key: refuse a bundle that `genrec sign` did not sign with its private key.",
    ),
]

StorageOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="Of the catalogue's object store, such as AWS_REGION=eu-west-1; repeatable. The environment counts too.",
    ),
]


def storage_options(given: list[str] | None) -> dict[str, str]:
    """`--storage-option KEY=VALUE`, as often as given. Raises typer.BadParameter for anything else."""
    options = {}
    for text in given or ():
        key, _, value = text.partition("=")
        if not key or not value:
            raise typer.BadParameter(f"--storage-option {text!r}: write KEY=VALUE")
        options[key] = value
    return options


@contextmanager
def usage(option: str = "", value: str = "") -> Iterator[None]:
    """What the options alone decide: a ValueError of this block is a usage error, exit status 2.

    option, value: put in front of its message, if that does not name them.
    """
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(f"{option} {value!r}: {error}" if option else str(error)) from error


def one_of(names: Sequence[str]) -> Callable[[str | None], str | None]:
    """The callback of an option that takes one of `names`, or nothing if it is optional."""

    def judge(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"use one of {', '.join(names)}")
        return value

    return judge


def numbers(
    option: str, text: str, kind: type[Number], *, count: int | None = None, least: Number, most: Number
) -> tuple[Number, ...]:
    """The numbers of "1,2,3", the value of `option`: `count` of them if it is given, each from `least` to `most`.

    Raises typer.BadParameter for anything else.
    """
    words = text.split(",")
    what = "whole numbers" if kind is int else "numbers"
    if count is not None and len(words) != count:
        raise typer.BadParameter(f"{option} {text!r}: write {count} {what} with commas between them")
    found = []
    for word in words:
        try:
            number = kind(word)
        except ValueError:
            raise typer.BadParameter(
                f"{option} {text!r}: {word!r} is no number; write {what} with commas between them"
            ) from None
        if not least <= number <= most:
            raise typer.BadParameter(f"{option} {text!r}: {word} is not between {least} and {most}")
        found.append(number)
    return tuple(found)
