"""The languages of XLM-R: their names, and whether a text is in the one it should be in.

Identification is py3langid's (BSD licence, its model of 4.6 MB comes with it): a naive Bayes over byte sequences, sure
on sentences and unsure on words, so it only contradicts where it is sure and the languages are not neighbours.
"""

from functools import lru_cache
from typing import Any

from training.scripts import is_written_in

# XLM-R's, with romanised and other variants of a language counted once: 93, as many as the report's synthetic data has.
_TABLE = """
af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, br Breton,
bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English, eo Esperanto, es Spanish, et
Estonian, eu Basque, fa Persian, fi Finnish, fr French, fy Western_Frisian, ga Irish, gd Scottish_Gaelic, gl Galician,
gu Gujarati, ha Hausa, he Hebrew, hi Hindi, hr Croatian, hu Hungarian, hy Armenian, id Indonesian, is Icelandic, it
Italian, ja Japanese, jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ku Kurdish, ky Kyrgyz, la
Latin, lo Lao, lt Lithuanian, lv Latvian, mg Malagasy, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms
Malay, my Burmese, ne Nepali, nl Dutch, no Norwegian, om Oromo, or Odia, pa Punjabi, pl Polish, ps Pashto, pt
Portuguese, ro Romanian, ru Russian, sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq
Albanian, sr Serbian, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, th Thai, tl Filipino, tr Turkish, ug
Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, xh Xhosa, yi Yiddish, zh Chinese
"""
LANGUAGES = {code: name.replace("_", " ") for code, name in (entry.split() for entry in _TABLE.split(","))}
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


def language_of(text: str) -> tuple[str, float] | None:
    """The likeliest language (ISO 639) and its probability; None for a text without letters.

    Raises ModuleNotFoundError where py3langid is not installed.
    """
    if not letters_in(text):
        return None
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


def why_not_in(text: str, code: str) -> str | None:
    """Why a text is not in a language, or None: it has no letters, is mostly in another script, or surely in another
    language.
    """
    total = letters_in(text)
    if not total:
        return "no letters"
    if not is_written_in(text, code, SCRIPT_SHARE_MIN):
        return "script"
    if total < SURE_FROM_LETTERS or code not in _identifier().labels:
        return None
    found = language_of(text)
    if found is None or found[1] < SURE or found[0] == code:
        return None
    return None if any({code, found[0]} <= set(group.split()) for group in _NEIGHBOURS) else "language"


def letters_in(text: str) -> int:
    """How many letters a text has."""
    return sum(character.isalpha() for character in text)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    # Reading its model takes a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
