"""WordNet's nouns: a reader of its files, the senses of words, and the relations between them."""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import os
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rose_d2.vocabulary.names import normalise_name, singular_forms

logger = logging.getLogger(__name__)

HOW_TO_GET_WORDNET = (
    ("run " if importlib.util.find_spec("nltk") else "run `pip install nltk` and ")
    + "`python -m nltk.downloader wordnet`, or set TEST.VOCABULARY.WORDNET to a folder with "
    "WordNet's index.noun and data.noun (Debian's package wordnet-base puts them "
    "into /usr/share/wordnet)"
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
# Lexicographer files of what can be seen and touched, and of what can be seen at all.
_CONCRETE = {
    *("noun.Tops", "noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.object"),
    *("noun.person", "noun.plant", "noun.substance"),
}
# Classes of COCO and ADE20k whose sense in images is not the first concrete one, each with another
# word of that synset or one of the synset above it.
_SEEN_AS = {
    "bar": "counter",
    "blind": "protective_covering",
    "bulletin_board": "notice_board",
    "cake": "baked_goods",
    "canopy": "shelter",
    "cushion": "padding",
    "glass": "drinking_glass",
    "mouse": "computer_mouse",
    "net": "fabric",
    "palm": "palm_tree",
    "plant": "flora",
    "plate": "flatware",
    "radiator": "heater",
    "railroad": "railroad_track",
    "runway": "paved_surface",
    "sconce": "wall_bracket",
    "toilet": "commode",
    "van": "truck",
}
# People and parts of the body are what words for other things mean in slang.
_FIGURATIVE = {"noun.body", "noun.person"}
_VISIBLE = {
    *("noun.communication", "noun.event", "noun.group", "noun.location", "noun.phenomenon"),
    *("noun.possession", "noun.quantity", "noun.shape"),
}
# Of WordNet's top file only these are words for things; the rest (entity, object, whole, living
# thing, artifact, ...) is above nearly everything.
_USEFUL_TOPS = {"person", "animal", "plant", "food"}
# A finger is part of a hand, an arm and a body.
_PART_STEPS = 3
SIMILARITIES = ("path", "wup")


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


class WordSenses:
    """Picks one noun sense of WordNet for a word.

    A name in an image means a thing that can be seen, so it is the first of the word's senses in
    WordNet's order (the commonest first) that lies in a lexicographer file of concrete things; if
    there is none, of other visible ones; never an individual (crane is not Stephen Crane).

    * People and body parts are what many other words mean in slang. Such a sense counts only if
      it is the word's very first and WordNet met the word in its annotated texts, or if there is
      no other: a pig is no slob and a mug no fool, but a kid is a child.
    * A plant yields to its fruit: a banana is what one eats.
    * Posters are no artifacts to WordNet but communication; as a first sense that counts too.
    * For a few class names of COCO and ADE20k the sense is given (`_SEEN_AS`).

    An ambiguous word keeps that one sense, whatever the image shows: a bat is the animal, a crane
    the machine. A class that means something else needs a synonym in its dataset's list: of
    several spellings of a class, the sense that most of them share is taken.

    Measured on the names of LVIS's 1203 classes, whose synsets people chose (WordNet 3.0): this
    sense is theirs for 86 %, WordNet's first for 79 %. Of the names that are a synonym or hyponym
    of a COCO or ADE20k class by those synsets, 9 of 10 are found; of those mapped, 84 to 88 % are
    right, and some others arguable (a passenger car, to WordNet a carriage). Letting all senses of
    a class count doubles the wrong ones and finds next to no more right ones.
    """

    def __init__(self, reader: Any, attested: frozenset[str]) -> None:
        """
        Args:
            reader: NLTK's WordNet reader.
            attested: words WordNet met in its texts, see `WordNetFiles.attested_words`.
        """
        self._reader = reader
        self._attested = attested

    def pick(self, spellings: Sequence[str]) -> Any | None:
        """The synset of a word or of several names of one thing, None if WordNet knows none.

        Args:
            spellings: names in any spelling; "street lamp" is also looked up as "streetlamp".
        """
        forms = {form: None for spelling in spellings for form in _forms(spelling)}
        hints = {_SEEN_AS[form] for form in forms if form in _SEEN_AS}
        candidates = list(dict.fromkeys(s for form in forms for s in self._readings(form)))

        def shared(synset: Any) -> int:
            names = [name.lower() for name in synset.lemma_names()]
            above = {name for parent in synset.hypernyms() for name in parent.lemma_names()}
            return sum(name in forms or name in hints for name in names) + len(above & hints)

        return max(candidates, key=shared, default=None)  # the first of equals

    def _readings(self, form: str) -> list[Any]:
        """Senses that a word may have in an image, likeliest first."""
        synsets = self._reader.synsets(form, "n")
        common = [synset for synset in synsets if not synset.instance_hypernyms()]
        concrete = [synset for synset in common if synset.lexname() in _CONCRETE]
        files = {synset.lexname() for synset in concrete}
        is_produce = any(map(_is_produce, concrete))
        if common[:1] == synsets[:1] and "noun.artifact" not in files:
            concrete = [s for s in common if s in concrete or s == _printed(synsets)]
        is_attested = self._reader.morphy(form, "n") in self._attested
        literal = [
            synset
            for synset in concrete
            if not (is_produce and synset.lexname() == "noun.plant")
            and (synset.lexname() not in _FIGURATIVE or (is_attested and synset == synsets[0]))
        ]
        first = [synset for synset in concrete if synset == synsets[0]]
        return literal or first or [s for s in common if s.lexname() in _VISIBLE] or concrete


def _is_produce(synset: Any) -> bool:
    """Whether it is a fruit or vegetable to eat; the plant has a sense of its own."""
    return synset.lexname() == "noun.food" and any(
        "produce" in parent.lemma_names() for parent in synset.closure(lambda s: s.hypernyms())
    )


def _printed(synsets: list[Any]) -> Any | None:
    """The first sense, if it is a sign or a publication."""
    return next((s for s in synsets[:1] if s.lexname() == "noun.communication"), None)


def _forms(spelling: str) -> Iterator[str]:
    """How WordNet may write a name."""
    normalised = normalise_name(spelling)
    for phrase in (normalised, *singular_forms(normalised)):
        for joint in ("_", "", "-") if " " in phrase else ("",):
            yield phrase.replace(" ", joint)


class LexicalRelations:
    """Noun senses of WordNet and what is above them and around them.

    A sense is the byte offset of its synset; every word has one, see `WordSenses`.

    Methods may be called from several threads.
    """

    def __init__(self, files: WordNetFiles) -> None:
        """
        Args:
            files: the noun database.

        Raises:
            ModuleNotFoundError: if NLTK is not installed.
        """
        self.source = str(files.path)
        self._reader = noun_reader(files)
        self._senses = WordSenses(self._reader, files.attested_words())
        self._lock = threading.RLock()
        self._above: dict[int, dict[int, int]] = {}
        people = [s for s in self._reader.synsets("person", "n") if s.lexname() == "noun.Tops"]
        self._person = people[0] if people else None

    def sense(self, spellings: Sequence[str]) -> int | None:
        """The sense of a word or of several names of one thing, None if WordNet knows none.

        Args:
            spellings: names in any spelling; "street lamp" is also looked up as "streetlamp".
        """
        with self._lock:
            synset = self._senses.pick(spellings)
            return None if synset is None else synset.offset()

    def ancestors(self, sense: int) -> Mapping[int, int]:
        """The sense itself and all more general ones, with the steps up to them.

        It ends below the words that are above nearly everything (WordNet's top file, but for
        person, animal, plant and food): that, not a number of steps, is where a hypernym says
        too little, since a dog is two steps from animal and a horse eight.
        """
        with self._lock:
            if sense not in self._above:
                self._above[sense] = self._climb(sense)
            return self._above[sense]

    def words(self, sense: int) -> frozenset[str]:
        """The normalised names of a sense."""
        with self._lock:
            names = self._synset(sense).lemma_names()
        return frozenset(normalise_name(name) for name in names)

    def wholes(self, sense: int) -> tuple[int, ...]:
        """Senses of which this one is a part, nearest first, at most three steps away."""
        with self._lock:
            found, level = {sense: None}, [self._synset(sense)]
            for _ in range(_PART_STEPS):
                level = [whole for synset in level for whole in synset.part_holonyms()]
                found.update(dict.fromkeys(sorted(whole.offset() for whole in level)))
            return tuple(found)[1:]

    def distances(self, sense: int) -> Mapping[int, int]:
        """Like `ancestors`, up to WordNet's root."""
        with self._lock:
            steps = self._synset(sense).hypernym_distances()
            shortest: dict[int, int] = {}
            for synset, distance in steps:
                offset = synset.offset()
                shortest[offset] = min(distance, shortest.get(offset, distance))
            return shortest

    def depths(self, sense: int) -> tuple[int, int]:
        """Steps from WordNet's root, on the shortest and on the longest way."""
        with self._lock:
            return self._synset(sense).min_depth(), self._synset(sense).max_depth()

    def _synset(self, sense: int) -> Any:
        return self._reader.synset_from_pos_and_offset("n", sense)

    def _climb(self, sense: int) -> dict[int, int]:
        above, queue = {sense: 0}, [self._synset(sense)]
        for synset in queue:
            for parent in self._parents(synset):
                if parent.offset() not in above:
                    above[parent.offset()] = above[synset.offset()] + 1
                    queue.append(parent)
        return above

    def _parents(self, synset: Any) -> list[Any]:
        if synset.lexname() == "noun.Tops":
            return []
        parents = [
            parent
            for parent in synset.hypernyms()
            if parent.lexname() != "noun.Tops" or parent.lemma_names()[0] in _USEFUL_TOPS
        ]
        # WordNet files a driver under causal agents and a human under primates only.
        is_human = "human" in synset.lemma_names() and synset.lexname() == "noun.animal"
        is_person = synset.lexname() == "noun.person" and not parents
        if self._person is not None and (is_human or is_person):
            parents.append(self._person)
        return parents


@functools.cache
def load_lexical_relations(wordnet: str) -> LexicalRelations | None:
    """WordNet's relations, loaded once per process.

    Args:
        wordnet: TEST.VOCABULARY.WORDNET: a folder or zip file; "auto" for the places where NLTK
            and Debian put it, None if it is not there or NLTK is not installed; "" for None.

    Raises:
        ValueError: if a named folder has no WordNet.
        ModuleNotFoundError: if a folder is named and NLTK is not installed.
    """
    if not wordnet:
        return None
    if wordnet != "auto":
        return LexicalRelations(open_wordnet(wordnet))
    files = find_wordnet()
    if files is None or importlib.util.find_spec("nltk") is None:
        missing = "WordNet" if files is None else "NLTK"
        logger.info("No lexical rules: %s is not installed; %s.", missing, HOW_TO_GET_WORDNET)
        return None
    logger.info("Lexical rules from WordNet in %s", files.path)
    return LexicalRelations(files)


def class_similarity_matrix(
    class_names: Sequence[str], measure: str, *, wordnet: str = "auto"
) -> np.ndarray:
    """How near classes are in WordNet, the weights of Open mIoU, AP and PQ (arXiv 2311.03352).

    "path" is 1 / (1 + steps of the shortest way over a common hypernym); "wup" (Wu and Palmer,
    ACL 1994) is 2 d / (2 d + steps), with the depth d of the lowest common hypernym and the steps
    over it, counted as NLTK does (of several lowest ones, the one that gives the most). Classes
    WordNet does not know are near themselves only.

    Args:
        class_names: C names; "a, b" lists synonyms.
        measure: one of `SIMILARITIES`.
        wordnet: as for `load_lexical_relations`.

    Returns:
        (C, C) float64, symmetric, in [0, 1], ones on the diagonal.

    Raises:
        ValueError: if the measure is unknown or there is no WordNet.
    """
    if measure not in SIMILARITIES:
        raise ValueError(f"Unknown similarity {measure!r}; it is one of {', '.join(SIMILARITIES)}.")
    relations = load_lexical_relations(wordnet)
    if relations is None:
        raise ValueError(
            f"The similarity {measure!r} of classes needs WordNet: {HOW_TO_GET_WORDNET}."
        )
    senses = [relations.sense(name.split(",")) for name in class_names]
    above = [{} if sense is None else relations.distances(sense) for sense in senses]
    depths = {offset: relations.depths(offset) for offset in set().union(*above)}
    matrix = np.eye(len(senses))
    for i, first in enumerate(above):
        for j in range(i):
            common = first.keys() & above[j].keys()
            if common:
                steps = {offset: first[offset] + above[j][offset] for offset in common}
                matrix[i, j] = matrix[j, i] = _nearness(steps, depths, measure)
    return matrix


def _nearness(
    steps: Mapping[int, int], depths: Mapping[int, tuple[int, int]], measure: str
) -> float:
    if measure == "path":
        return 1 / (1 + min(steps.values()))
    lowest = max(depths[offset][0] for offset in steps)
    return max(
        2 * (longest + 1) / (2 * (longest + 1) + steps[offset])
        for offset, (shortest, longest) in ((o, depths[o]) for o in steps)
        if shortest == lowest
    )
