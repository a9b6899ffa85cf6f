"""Names as the eye sees them: two with a fold in common can be taken for one another.

- Case, separators, accents, invisible characters and compatibility forms (full-width, mathematical) fold away.
- Letters of other scripts fold to the Latin ones they look like, and so do digits and pairs (``0`` o, ``rn`` m).
- Words that only promise something (``official``, ``enhanced``, ``team``) fold away, unless nothing else would be left;
  the name with them is one of its folds, too, so that ``open-ai`` is taken for ``openai`` all the same.
- Folding is for comparison alone: it says nothing about which of two names is the right one.

(Unicode Technical Standard 39, section 4, "Confusable Detection"; the table is our own, of what is common.)
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache


def _pairs(*texts: str) -> dict[int, str]:
    """Return a translation out of texts of the form ``"latin: look-alikes"``."""
    table: dict[int, str] = {}
    for text in texts:
        latin, _, alike = text.partition(": ")
        table |= {ord(char): latin for char in alike if char != " "}
    return table


_ALIKE = _pairs(
    # Latin itself: small capitals, strokes, hooks. Then Cyrillic, Greek, Armenian.
    "a: ᴀɑɐ АаӐӑ Ααά",
    "ae: æӕ",
    "b: ʙƀɓƅ ВвЬьЪъ Ββ",
    "c: ᴄƈ СсҪҫ Ϲϲς",
    "d: ᴅđɗð ԀԁԂԃ",
    "e: ᴇəɛɘ ЕеЄєҼҽ Εεϵ",
    "f: ꜰƒ Ғғ Ϝϝ ք",
    "g: ɢɡɠ Ԍԍ ց",
    "h: ʜħɦ НнҺһҢңӇӈ Η հ",
    "i: ɪıɨɩ ІіЇї Ιιϊ",
    "j: ᴊȷʝ Јј Ϳϳ յ",
    "k: ᴋƙ КкҚқҜҝӃӄ Κκϰ",
    "l: ʟłɫƖ Ӏӏ ǀ",
    "m: ᴍɱ МмӍӎ Μ",
    "n: ɴŋɲƞ Пп Ννη ոռ",
    "o: ᴏøɵ ОоӨө Οοσόθ օ",
    "oe: œ",
    "p: ᴘƥþƿ РрҎҏ Ρρϱ",
    "q: ʠ Ԛԛ զ",
    "r: ʀɽɾ ГгҐґЯя Γ",
    "s: ꜱʂſ ЅѕՏ",
    "t: ᴛŧƭ ТтҬҭ Ττ",
    "u: ᴜʉ ЦцՍ υ ս",
    "v: ᴠʋ Ѵѵ",
    "w: ᴡɯ ԜԝШшЩщѠѡ ωϖ",
    "x: ХхҲҳ Χχ",
    "y: ʏƴ УуҮүҰұЎў Υγ",
    "z: ᴢƶʐ Ζζ",
    "3: ЗзӠӡ",
    "4: Чч",
)
"""Look-alikes of Latin letters, both cases, as they stand before anything else is folded."""
_PLAIN = _pairs("l: 1|i", "o: 0", "s: 5$", "e: 3", "a: 4@")
"""What is read as a letter among letters; ``i`` and ``l`` are one, since a capital I is a small l to the eye."""
_UNSEEN = ("Mn", "Me", "Mc", "Cf", "Cc")
"""Categories of characters that show nothing by themselves."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NO_WORD = re.compile(r"[^\w|$@]+|_+")
_ADDED = """
    official officially original genuine authentic authorized authorised verified certified trusted secure
    safe legit enhanced improved better best plus premium ultimate extended updated latest newest fixed
    patched real true new the by from team org inc corp company labs lab research hq ai hub release releases
    distribution mirror
"""
"""Words that promise something, or say who it is that promises."""
_GLUED = 6
"""From so many letters on, an added word is also seen where nothing separates it from the rest."""


@lru_cache(4096)
def folds(name: str) -> frozenset[str]:
    """Return what ``name`` folds to: as a whole, and without the words that only promise something.

    Two names can be taken for one another when they have a fold in common.
    """
    text = name.translate(_ALIKE)
    text = unicodedata.normalize("NFKD", text)
    text = "".join(char for char in text if unicodedata.category(char) not in _UNSEEN).translate(_ALIKE)
    found = set()
    for spaced in (text, _CAMEL.sub(" ", text)):
        words = [_plain(word) for word in _NO_WORD.split(spaced.casefold()) if word]
        kept = [word for word in words if word not in _promises()]
        found |= {_plain("".join(words)), _plain("".join(kept or words))}
    return frozenset(found | {_unglued(one) for one in found})


def _plain(word: str) -> str:
    return word.translate(_PLAIN).replace("rn", "m").replace("vv", "w")


@cache
def _promises() -> frozenset[str]:
    return frozenset(_plain(word) for word in _ADDED.split())


def _unglued(text: str) -> str:
    """Return ``text`` without long added words at its ends."""
    long = [word for word in _promises() if len(word) >= _GLUED]
    while True:
        for word in long:
            if text != word and text.startswith(word):
                text = text[len(word) :]
                break
            if text != word and text.endswith(word):
                text = text[: -len(word)]
                break
        else:
            return text
