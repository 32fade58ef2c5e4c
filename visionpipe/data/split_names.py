"""Tells which names of folders may mean a split, in the words and languages that people use."""

import re
import unicodedata
from dataclasses import dataclass

# Words for a split in the names of folders. Words of other languages are matched as a part of the name.
WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "validating": "validation",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "evaluation",
    "evaluation": "evaluation",
    "evaluate": "evaluation",
    "holdout": "evaluation",
    "heldout": "evaluation",
    "entrenamiento": "train",
    "entrainement": "train",
    "apprentissage": "train",
    "treino": "train",
    "treinamento": "train",
    "addestramento": "train",
    "trainings": "train",
    "validierung": "validation",
    "validierungs": "validation",
    "validacion": "validation",
    "validacao": "validation",
    "prueba": "test",
    "pruebas": "test",
    "teste": "test",
    "训练": "train",
    "訓練": "train",
    "学習": "train",
    "обучение": "train",
    "훈련": "train",
    "학습": "train",
    "验证": "validation",
    "驗證": "validation",
    "検証": "validation",
    "валидация": "validation",
    "검증": "validation",
    "测试": "test",
    "測試": "test",
    "テスト": "test",
    "тест": "test",
    "테스트": "test",
}
# Words beside it that say nothing of a class.
ANYTHING = {
    *(
        "set",
        "sets",
        "data",
        "dataset",
        "datasets",
        "daten",
        "subset",
        "split",
        "splits",
        "part",
        "partition",
        "fold",
    ),
    *(
        "image",
        "images",
        "img",
        "imgs",
        "picture",
        "pictures",
        "pic",
        "pics",
        "photo",
        "photos",
        "file",
        "files",
    ),
    *(
        "folder",
        "folders",
        "dir",
        "jpg",
        "jpeg",
        "png",
        "seg",
        "full",
        "all",
        "raw",
        "original",
        "orig",
        "cropped",
    ),
    *("resized", "final", "px", "x", "v", "of", "my", "集", "数据", "數據", "データ", "데이터"),
}
UNLABELLED = {
    "pred",
    "predict",
    "prediction",
    "unlabeled",
    "unlabelled",
    "inference",
    "unsup",
    "unsupervised",
}
ENDINGS = [
    word for word in sorted(ANYTHING) if len(word) > 2 or not word.isascii()
]  # "testset", but not "testa"
SUFFIXED = re.compile(f"(?P<word>{'|'.join(WORDS)})(?:{'|'.join(ENDINGS)})+")
PLAIN = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names that need no remark
HELD_OUT = re.compile(r"hold[-_. ]?out|held[-_. ]?out", re.IGNORECASE)


@dataclass(frozen=True)
class SplitName:
    """A folder's name that has a word for a split. `rest` is what else it has; `plain` whether that says nothing."""

    split: str
    rest: str
    plain: bool


def split_name(name: str) -> SplitName | None:
    """Reads a word for a split off the name of a folder: "train2017", "seg_train", "TestData", "hold-out"."""
    rest, split = [], ""
    for word in words_of(name):
        found = word if word in WORDS else (match["word"] if (match := SUFFIXED.fullmatch(word)) else "")
        if found and not split:
            split = WORDS[found]
        else:
            rest.append(word)
    if not split:
        return None
    plain = all(word.isdecimal() or word in ANYTHING for word in rest)
    return SplitName(split, " ".join(rest), plain)


def words_of(name: str) -> list[str]:
    """Splits a name at signs, between letters and digits, and before capitals, into words in lower case."""
    text = HELD_OUT.sub(" holdout ", unicodedata.normalize("NFKC", name))
    text = re.sub(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-z])(?=[A-Z])", " ", text)
    return [without_accents(word) for word in re.findall(r"[^\W_]+", text.casefold())]


def without_accents(word: str) -> str:
    """Removes the accents of Latin letters."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return plain if plain.isascii() else word
