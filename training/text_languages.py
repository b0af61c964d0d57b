"""The languages of XLM-R: their names and scripts, and whether a text is in the one it should be in.

Identification is py3langid's (BSD licence, its model of 4.6 MB comes with it): a naive Bayes over byte sequences, sure
on sentences and unsure on words, so it only contradicts where it is sure and the languages are not neighbours.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# XLM-R's, with romanised and other variants of a language counted once: 93, as many as the report's synthetic data has.
# Scripts as Unicode names their letters; "|" where a language has several.
_TABLE = """
af Afrikaans LATIN, am Amharic ETHIOPIC, ar Arabic ARABIC, as Assamese BENGALI, az Azerbaijani LATIN,
be Belarusian CYRILLIC, bg Bulgarian CYRILLIC, bn Bengali BENGALI, br Breton LATIN, bs Bosnian LATIN|CYRILLIC,
ca Catalan LATIN, cs Czech LATIN, cy Welsh LATIN, da Danish LATIN, de German LATIN, el Greek GREEK, en English LATIN,
eo Esperanto LATIN, es Spanish LATIN, et Estonian LATIN, eu Basque LATIN, fa Persian ARABIC, fi Finnish LATIN,
fr French LATIN, fy Western_Frisian LATIN, ga Irish LATIN, gd Scottish_Gaelic LATIN, gl Galician LATIN,
gu Gujarati GUJARATI, ha Hausa LATIN, he Hebrew HEBREW, hi Hindi DEVANAGARI, hr Croatian LATIN, hu Hungarian LATIN,
hy Armenian ARMENIAN, id Indonesian LATIN, is Icelandic LATIN, it Italian LATIN, ja Japanese CJK|HIRAGANA|KATAKANA,
jv Javanese LATIN, ka Georgian GEORGIAN, kk Kazakh CYRILLIC, km Khmer KHMER, kn Kannada KANNADA, ko Korean HANGUL|CJK,
ku Kurdish LATIN|ARABIC, ky Kyrgyz CYRILLIC, la Latin LATIN, lo Lao LAO, lt Lithuanian LATIN, lv Latvian LATIN,
mg Malagasy LATIN,
mk Macedonian CYRILLIC, ml Malayalam MALAYALAM, mn Mongolian CYRILLIC, mr Marathi DEVANAGARI, ms Malay LATIN,
my Burmese MYANMAR, ne Nepali DEVANAGARI, nl Dutch LATIN, no Norwegian LATIN, om Oromo LATIN, or Odia ORIYA,
pa Punjabi GURMUKHI, pl Polish LATIN, ps Pashto ARABIC, pt Portuguese LATIN, ro Romanian LATIN, ru Russian CYRILLIC,
sa Sanskrit DEVANAGARI, sd Sindhi ARABIC|DEVANAGARI, si Sinhala SINHALA, sk Slovak LATIN, sl Slovenian LATIN,
so Somali LATIN, sq Albanian LATIN, sr Serbian CYRILLIC|LATIN, su Sundanese LATIN, sv Swedish LATIN, sw Swahili LATIN,
ta Tamil TAMIL, te Telugu TELUGU, th Thai THAI, tl Filipino LATIN, tr Turkish LATIN, ug Uyghur ARABIC,
uk Ukrainian CYRILLIC, ur Urdu ARABIC, uz Uzbek LATIN|CYRILLIC, vi Vietnamese LATIN, xh Xhosa LATIN, yi Yiddish HEBREW,
zh Chinese CJK
"""
# Neighbours that are taken for each other even in whole paragraphs.
_NEIGHBOURS = [
    "no nn da sv", "hr bs sr sl", "id ms jv su ace", "af nl fy", "hi mr ne sa", "zh wuu yue ja", "xh zu st nso",
    "gl pt es ca oc an ext", "cs sk", "be uk ru", "bg mk", "tr az crh tk", "kk ky tt ba", "ga gd", "bn as",
    "ar ary arz", "fa ps ur sd ug ku sdh", "uz uzs", "yi he hbo", "br fr oc", "lt ltg lv", "it vec lij",
]  # fmt: skip

# Ours: of 150 sentences of FLORES-200 in each of 63 languages, 1 of 9,450 is refused.
SCRIPT_SHARE_MIN = 0.5
SURE = 0.9
SURE_FROM_LETTERS = 40


@dataclass(frozen=True)
class Language:
    """code: ISO 639-1.   scripts: any mixture of these is fine."""

    code: str
    name: str
    scripts: frozenset[str]


def _read_table() -> dict[str, Language]:
    rows = (entry.split() for entry in _TABLE.replace("\n", " ").split(","))
    return {code: Language(code, name.replace("_", " "), frozenset(scripts.split("|"))) for code, name, scripts in rows}


LANGUAGES = _read_table()


def language_of(text: str) -> tuple[str, float] | None:
    """The likeliest language (ISO 639) and its probability; None for a text without letters.

    Raises ModuleNotFoundError where py3langid is not installed.
    """
    if not letters_of(text):
        return None
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


def why_not_in(text: str, code: str) -> str | None:
    """Why a text is not in a language, or None: it has no letters, is mostly in another script, or surely in another
    language.
    """
    letters = letters_of(text)
    total = sum(letters.values())
    if not total:
        return "no letters"
    if sum(letters[script] for script in LANGUAGES[code].scripts) < SCRIPT_SHARE_MIN * total:
        return "script"
    if total < SURE_FROM_LETTERS or code not in _identifier().labels:
        return None
    found = language_of(text)
    if found is None or found[1] < SURE or found[0] == code:
        return None
    return None if any({code, found[0]} <= set(group.split()) for group in _NEIGHBOURS) else "language"


def letters_of(text: str) -> Counter[str]:
    """How many letters of each script, by the first word of their Unicode names."""
    normal = unicodedata.normalize("NFKC", text)
    return Counter(script for char in normal if (script := _script(char)) is not None)


@lru_cache(maxsize=1 << 16)
def _script(char: str) -> str | None:
    if not unicodedata.category(char).startswith("L"):
        return None
    return unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]


@lru_cache(maxsize=1)
def _identifier() -> Any:
    # Reading its model takes a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
