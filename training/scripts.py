"""Which scripts a language is written in: a text whose letters are others' is not of the language that it claims.

Catches what went wrong on the way (a column of another language, broken encodings), not languages of one script; those
take a model.
"""

import unicodedata

# By the first words of Unicode's character names. Languages that are not here may be written in anything.
_SCRIPTS: dict[tuple[str, ...], str] = {
    ("LATIN",): (
        "af ast br ca ceb cs cy da de en eo es et eu fi fil fo fr fy ga gd gl gn ha haw hr ht hu id ig is it jv "
        "la lb lg ln lt lv mg mi ms mt nl nn no nb nso ny oc om pl pt qu rm rn ro rw sk sl sm sn so sq st su sv sw "
        "tl tn tr ts ve vi wo xh yo zu"
    ),
    ("CYRILLIC",): "ba be bg cv ky mk ru tg tt uk",
    ("CYRILLIC", "LATIN"): "az bs kk mn sh sr uz",
    ("ARABIC",): "ar arz ckb fa ps sd ug ur",
    ("LATIN", "ARABIC"): "ku",
    ("HEBREW",): "he yi",
    ("GREEK",): "el",
    ("ARMENIAN",): "hy",
    ("GEORGIAN",): "ka",
    ("DEVANAGARI",): "bho hi mai mr ne sa",
    ("BENGALI",): "as bn",
    ("GURMUKHI",): "pa",
    ("GUJARATI",): "gu",
    ("ORIYA",): "or",
    ("TAMIL",): "ta",
    ("TELUGU",): "te",
    ("KANNADA",): "kn",
    ("MALAYALAM",): "ml",
    ("SINHALA",): "si",
    ("THAI",): "th",
    ("LAO",): "lo",
    ("MYANMAR",): "my",
    ("KHMER",): "km",
    ("TIBETAN",): "bo",
    ("ETHIOPIC",): "am ti",
    ("CJK",): "zh yue wuu",
    ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"): "ja",
    ("HANGUL", "CJK"): "ko",
}
_BY_LANGUAGE = {language: scripts for scripts, languages in _SCRIPTS.items() for language in languages.split()}
# ISO 15924, where a language's name says its script: zh-Hant, srp_Cyrl.
_BY_SUFFIX = {
    "Latn": ("LATIN",),
    "Cyrl": ("CYRILLIC",),
    "Arab": ("ARABIC",),
    "Deva": ("DEVANAGARI",),
    "Hans": ("CJK",),
    "Hant": ("CJK",),
    "Hani": ("CJK",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "Hang": ("HANGUL", "CJK"),
    "Kore": ("HANGUL", "CJK"),
    "Thai": ("THAI",),
    "Grek": ("GREEK",),
    "Hebr": ("HEBREW",),
    "Beng": ("BENGALI",),
    "Ethi": ("ETHIOPIC",),
}
# Enough of a text to know its script by.
LETTERS_LOOKED_AT = 200


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts of a language by its code, with a script's or a country's behind it; () where that is not known."""
    first, *rest = language.replace("_", "-").split("-")
    named = next((_BY_SUFFIX[part] for part in rest if part in _BY_SUFFIX), None)
    # Codes of languages are lower case: the AR of es-AR is Argentina.
    return named or _BY_LANGUAGE.get(first, ())


def share_in_script(text: str, scripts: tuple[str, ...]) -> float:
    """Of a text's first letters the share that is of these scripts; 1 where it has no letters."""
    seen = matching = 0
    for character in text:
        # Half-width Katakana and the like are letters of their script.
        if character.isalpha():
            seen += 1
            name = unicodedata.name(character, "").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
            matching += name.startswith(scripts)
            if seen == LETTERS_LOOKED_AT:
                break
    return matching / seen if seen else 1.0


def is_written_in(text: str, language: str, share_min: float) -> bool:
    """Whether a text may be of the language: so large a share of its letters is of the language's scripts."""
    scripts = scripts_of(language)
    return not scripts or share_in_script(text, scripts) >= share_min
