"""The bundle: a versioned, checksummed directory of everything that one deployment serves. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from genrec.arrays import load_archive
from genrec.bundle.checks import content_problems, file_problems
from genrec.bundle.manifest import (
    CATALOG,
    GOLDEN,
    INDEX,
    MANIFEST,
    MASKS,
    PREFIXES,
    PREFIXES_FORMAT,
    QUANTIZER,
    TOKENIZER,
    VOTES,
    BundleError,
    read_manifest,
)
from genrec.bundle.signature import verify_bundle
from genrec.catalog import (
    Catalog,
    CatalogView,
    ItemIndex,
    PrefixTable,
    PrefixTrie,
    ResidualQuantizer,
    SemanticIdSpace,
)
from genrec.prompt import PromptLayout, QueryTokenizer
from genrec.votes import ItemVotes, Voting

_MOST_SHOWN = 100


class Bundle:
    """An opened bundle. Opening reads the manifest; arrays are mapped when they are first used."""

    def __init__(self, path: Path | str, public_key: Path | None = None) -> None:
        """Open the bundle at `path`.

        public_key: of whoever has to have signed it; None takes any. Raises BundleError for a missing, malformed or
        newer manifest, and for one without the signature, KeyProblem for a key that cannot be used.
        """
        self.path = Path(path)
        signed = None if public_key is None else verify_bundle(self.path, public_key)
        self.manifest = read_manifest(self.path / MANIFEST, signed)

    @property
    def space(self) -> SemanticIdSpace:
        return SemanticIdSpace(self.manifest.levels)

    @cached_property
    def layout(self) -> PromptLayout:
        with _blame(self.path / MANIFEST):
            return PromptLayout(space=self.space, **self.manifest.prompt.model_dump())

    @cached_property
    def catalog(self) -> Catalog:
        with _blame(self.path / CATALOG):
            return Catalog.load(self.path / CATALOG, self.space)

    @cached_property
    def index(self) -> ItemIndex:
        with _blame(self.path / INDEX):
            return ItemIndex.load(self.path / INDEX)

    @cached_property
    def masks(self) -> PrefixTable:
        """What drafting may be masked with. A bundle of format 2 holds it in another form, so it is made here."""
        if self.manifest.format_version == PREFIXES_FORMAT:
            return PrefixTable.of(self.space, self.catalog)
        with _blame(self.path / MASKS):
            return PrefixTable.load(self.path / MASKS, self.space)

    @cached_property
    def graph_masks(self) -> PrefixTable | PrefixTrie:
        """The same in the form that the bundle's ONNX graph takes."""
        if self.manifest.format_version != PREFIXES_FORMAT:
            return self.masks
        with _blame(self.path / PREFIXES):
            return PrefixTrie.load(self.path / PREFIXES, self.space)

    @cached_property
    def query_tokenizer(self) -> QueryTokenizer | None:
        """The tokenizer of text queries; None for a bundle that was not trained with them."""
        if not self.layout.max_query:
            return None
        with _blame(self.path / TOKENIZER):
            return QueryTokenizer(self.path / TOKENIZER, self.layout)

    @cached_property
    def quantizer(self) -> ResidualQuantizer | None:
        """What gives new items their semantic IDs; None for a bundle whose own were given or are of behaviour."""
        folder = self.path / QUANTIZER
        return ResidualQuantizer.load(folder) if folder.is_dir() else None

    @cached_property
    def votes(self) -> ItemVotes | None:
        """What is added to the drafts' scores; None for a bundle without."""
        if self.manifest.votes is None:
            return None
        with _blame(self.path / VOTES):
            return ItemVotes.load(self.path / VOTES, self.manifest.votes, len(self.catalog))

    def voting(self, view: CatalogView | None = None) -> Voting | None:
        """The votes on a version of a live catalogue, on the bundle's own if None; None for a bundle without."""
        return None if self.votes is None else Voting(self.votes, self.catalog, self.catalog if view is None else view)

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        """One request and its answer at each step; see `genrec.golden`."""
        with _blame(self.path / GOLDEN):
            return load_archive(self.path / GOLDEN, "golden request")

    def check(self) -> None:
        """Read every file and verify it. Raises BundleError that lists every problem found."""
        problems = [*file_problems(self)]
        if not problems:
            problems += content_problems(self)
        if problems:
            shown = [problem if len(problem) <= 500 else f"{problem[:497]}..." for problem in problems[:_MOST_SHOWN]]
            if len(problems) > len(shown):
                shown.append(f"and {len(problems) - len(shown)} problems more")
            listed = "\n".join(f"  - {problem}" for problem in shown)
            raise BundleError(f"bundle {self.path} cannot be served:\n{listed}\nRebuild it, or copy it again.")


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        text = str(error)
        raise BundleError(text if text.startswith(str(path)) else f"{path}: {text}") from error
