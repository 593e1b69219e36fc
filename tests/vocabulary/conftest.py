"""A WordNet of some fifty synsets in its own file format."""

from pathlib import Path

import pytest

# Numbers of lexicographer files.
TOPS, ANIMAL, ARTIFACT, BODY, COMMUNICATION = 3, 5, 6, 8, 10
FOOD, GROUP, PERSON, PLANT = 13, 14, 18, 20

# (key, lexicographer file, words, synsets above it; "#" for wholes, "@i" for what it is one of).
# The synsets of a word are its senses, in this order.
SYNSETS = [
    ("entity", TOPS, "entity", ""),
    ("object", TOPS, "object", "entity"),
    ("organism", TOPS, "organism", "object"),
    ("person", TOPS, "person individual", "organism"),
    ("animal", TOPS, "animal beast", "organism"),
    ("works", ARTIFACT, "plant works", "building"),
    ("plant", TOPS, "plant flora", "organism"),
    ("artifact", TOPS, "artifact", "object"),
    ("food", TOPS, "food", "object"),
    ("dog", ANIMAL, "dog domestic_dog", "animal"),
    ("poodle", ANIMAL, "poodle", "dog"),
    ("retriever", ANIMAL, "golden_retriever", "dog"),
    ("cat", ANIMAL, "cat", "animal"),
    ("guy", PERSON, "guy cat", "person"),
    ("primate", ANIMAL, "primate", "animal"),
    ("human", ANIMAL, "homo human", "primate"),
    ("agent", TOPS, "causal_agent", "entity"),
    ("driver", PERSON, "driver", "agent"),
    ("child", PERSON, "kid child", "person"),
    ("goat", ANIMAL, "kid", "animal"),
    ("fool", PERSON, "mug fool", "person"),
    ("mug", ARTIFACT, "mug", "artifact"),
    ("rodent", ANIMAL, "mouse", "animal"),
    ("device", ARTIFACT, "mouse computer_mouse", "artifact"),
    ("author", PERSON, "Crane Stephen_Crane", "@i person"),
    ("crane", ARTIFACT, "crane", "vehicle"),
    ("vehicle", ARTIFACT, "vehicle", "artifact"),
    ("car", ARTIFACT, "car auto", "vehicle"),
    ("sedan", ARTIFACT, "sedan", "car"),
    ("bus", ARTIFACT, "bus", "vehicle"),
    ("wheel", ARTIFACT, "wheel", "artifact # vehicle"),
    ("rim", ARTIFACT, "rim", "artifact # wheel"),
    ("building", ARTIFACT, "building edifice", "artifact"),
    ("house", ARTIFACT, "house", "building"),
    ("roof", ARTIFACT, "roof", "artifact # building"),
    ("tail", ANIMAL, "tail", "object # animal"),
    ("sausage", FOOD, "hot_dog", "food"),
    ("produce", FOOD, "produce", "food"),
    ("herb", PLANT, "banana", "plant"),
    ("fruit", FOOD, "banana", "produce"),
    ("bush", PLANT, "rose", "plant"),
    ("wine", FOOD, "rose", "food"),
    ("data", GROUP, "table", "entity"),
    ("table", ARTIFACT, "table", "artifact"),
    ("meal", ARTIFACT, "table", "artifact"),
    ("dining", ARTIFACT, "dining_table", "meal"),
    ("lamp", ARTIFACT, "lamp", "artifact"),
    ("street", ARTIFACT, "streetlight", "lamp"),
    ("crowd", GROUP, "crowd", "entity"),
    ("couch", ARTIFACT, "sofa couch", "artifact"),
    ("poster", COMMUNICATION, "poster", "entity"),
    ("horse", ANIMAL, "poster", "animal"),
    ("hand", BODY, "hand", "object # human"),
]
# Words that WordNet counted in its texts; of all others the order of the senses is arbitrary.
ATTESTED = {"kid", "child", "guy", "hand", "dog", "crane"}


def write_wordnet(folder: Path) -> None:
    """Write index.noun and data.noun, with right byte offsets, and noun.exc."""
    header = "  1 a header line\n"
    sizes = [len(_data_line(synset, dict.fromkeys(_keys(), 0))) for synset in SYNSETS]
    offsets = {key: len(header) + sum(sizes[:index]) for index, (key, *_) in enumerate(SYNSETS)}
    folder.mkdir(parents=True, exist_ok=True)
    data = header + "".join(_data_line(synset, offsets) for synset in SYNSETS)
    (folder / "data.noun").write_bytes(data.encode())
    senses: dict[str, list[int]] = {}
    for key, _, words, _ in SYNSETS:
        for word in words.split():
            senses.setdefault(word.lower(), []).append(offsets[key])
    lines = [
        f"{word} n {len(found)} 1 @ {len(found)} {int(word in ATTESTED)} "
        + " ".join(f"{offset:08d}" for offset in found)
        for word, found in sorted(senses.items())
    ]
    (folder / "index.noun").write_bytes((header + "\n".join(lines) + "\n").encode())
    (folder / "noun.exc").write_text("doggies dog\n")


def _keys() -> list[str]:
    return [key for key, *_ in SYNSETS]


def _data_line(synset: tuple[str, int, str, str], offsets: dict[str, int]) -> str:
    key, lexfile, words, above = synset
    symbol, pointers = "@", []
    for part in above.split():
        if part in ("#", "@i"):
            symbol = {"#": "#p", "@i": "@i"}[part]
        else:
            pointers.append(f"{symbol} {offsets[part]:08d} n 0000")
    names = words.split()
    listed = " ".join(f"{name} 0" for name in names)
    body = " ".join([f"{len(names):02x} {listed} {len(pointers):03d}", *pointers])
    return f"{offsets[key]:08d} {lexfile:02d} n {body} | {key}\n"


@pytest.fixture(scope="session")
def tiny_wordnet(tmp_path_factory):
    """Folder of the tiny WordNet."""
    folder = tmp_path_factory.mktemp("wordnet")
    write_wordnet(folder)
    return folder


@pytest.fixture(scope="session")
def relations(tiny_wordnet):
    """Lexical relations of the tiny WordNet."""
    pytest.importorskip("nltk")
    from rose_d2.vocabulary.wordnet import LexicalRelations, WordNetFiles

    return LexicalRelations(WordNetFiles(tiny_wordnet))
