"""WordNet's noun database on disk: where it is, and a reader of it."""

from __future__ import annotations

import io
import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, TextIO

HOW_TO_GET_WORDNET = (
    "run `pip install nltk` and `python -m nltk.downloader wordnet`, or set "
    "TEST.VOCABULARY.WORDNET to a folder with WordNet's index.noun and data.noun (Debian's "
    "package wordnet-base puts them into /usr/share/wordnet)"
)
_CORPORA = ("wordnet", "wordnet.zip", "wordnet31", "wordnet31.zip")
_INSIDE = ("", "dict", *(f"corpora/{corpus}" for corpus in _CORPORA))
# The lexicographer files up to the last one of nouns, by their number in the database (the
# manual page lexnames(5WN)). NLTK's copy of WordNet lists them in a file, other copies do not.
_LEXNAMES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event"),
    *("noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object"),
    *("noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance"),
    "noun.time",
)


class WordNetFiles:
    """The noun files of a WordNet database, in a folder or a zip file.

    Only nouns are served: names of things are nouns, and the other three word classes cost a
    third of the loading time.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: folder with index.noun and data.noun, or a zip file that contains them.

        Raises:
            FileNotFoundError: if they are not there.
        """
        self.path = path
        self._prefix = ""
        if path.suffix == ".zip" and path.is_file():
            with zipfile.ZipFile(path) as archive:
                self._names = frozenset(archive.namelist())
            inside = [name for name in self._names if name.split("/")[-1] == "data.noun"]
            self._prefix = min(inside, default="").removesuffix("data.noun")
        else:
            self._names = frozenset(os.listdir(path)) if path.is_dir() else frozenset()
        if not {self._prefix + "index.noun", self._prefix + "data.noun"} <= self._names:
            raise FileNotFoundError(f"There are no index.noun and data.noun in {path}.")

    def open(self, name: str) -> TextIO:
        """A file's text; empty for files that are missing or are not about nouns."""
        if name == "lexnames":
            return io.StringIO("".join(f"{i:02d}\t{n}\t1\n" for i, n in enumerate(_LEXNAMES)))
        member = self._prefix + name
        if "noun" not in name or member not in self._names:
            return io.StringIO()
        if self.path.is_file():
            with zipfile.ZipFile(self.path) as archive:
                return io.TextIOWrapper(io.BytesIO(archive.read(member)), encoding="utf-8")
        return (self.path / member).open(encoding="utf-8")

    def attested_words(self) -> frozenset[str]:
        """Lemmas of which WordNet counted some sense in its annotated texts.

        For all others the order of the senses is arbitrary (manual page wndb(5WN), tagsense_cnt).
        """
        words = set()
        with self.open("index.noun") as lines:
            for line in lines:
                if not line.startswith(" "):
                    fields = line.split()
                    num_senses = int(fields[2])
                    if int(fields[-1 - num_senses]) > 0:
                        words.add(fields[0])
        return frozenset(words)


def find_wordnet() -> WordNetFiles | None:
    """The first WordNet at the places where NLTK and Debian put it, None if there is none."""
    candidates = [root / "corpora" / corpus for root in _nltk_roots() for corpus in _CORPORA]
    for path in (*candidates, Path("/usr/share/wordnet")):
        if path.exists():
            try:
                return WordNetFiles(path)
            except FileNotFoundError:
                continue
    return None


def open_wordnet(path: str) -> WordNetFiles:
    """The WordNet that a user names.

    Args:
        path: its folder or zip file, or one that has it in `dict` or `corpora/wordnet`.

    Raises:
        ValueError: if there is no noun database.
    """
    for inside in _INSIDE:
        try:
            return WordNetFiles(Path(path).expanduser() / inside)
        except FileNotFoundError:
            continue
    raise ValueError(
        f"TEST.VOCABULARY.WORDNET is {path!r}, and there are no index.noun and data.noun; "
        f"{HOW_TO_GET_WORDNET}; or leave the lexical rules out with an empty string."
    )


def _nltk_roots() -> list[Path]:
    """NLTK's search path, without the seconds that importing it takes."""
    loaded = sys.modules.get("nltk.data")
    if loaded is not None:
        return [Path(root) for root in loaded.path]
    asked = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    prefixes = [Path(sys.prefix) / folder for folder in ("", "share", "lib")]
    system = [
        Path("/usr/share"),
        Path("/usr/local/share"),
        Path("/usr/lib"),
        Path("/usr/local/lib"),
    ]
    homes = [folder / "nltk_data" for folder in (Path("~").expanduser(), *prefixes, *system)]
    return [*(Path(root) for root in asked if root), *homes]


def noun_reader(files: WordNetFiles) -> Any:
    """NLTK's WordNet reader on these files.

    NLTK opens files below its own data path only and wants all word classes, a file of sense keys
    and a second WordNet to compare with; here it is handed what noun relations need.

    Raises:
        ModuleNotFoundError: if NLTK is not installed.
    """
    try:
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
        from nltk.data import PathPointer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"WordNet in {files.path} is read with NLTK, which is not installed: run "
            "`pip install nltk`, or set TEST.VOCABULARY.WORDNET to an empty string.",
            name=error.name,
        ) from error

    class Root(PathPointer):
        path = str(files.path)

        def open(self, encoding: str | None = None) -> TextIO:
            return files.open("")

        def file_size(self) -> int:
            return 0

        def join(self, fileid: str) -> PathPointer:
            return self

    class NounReader(WordNetCorpusReader):
        def open(self, file: str) -> TextIO:
            return files.open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")
        return NounReader(Root(), None)
