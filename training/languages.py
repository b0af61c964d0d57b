"""What is known of a language: its script, and how much text of it there is on the web."""

from dataclasses import dataclass
from typing import Literal

Resource = Literal["high", "mid", "low", "unlisted"]
# Our rule, over the size of a language's text in CC-100, the crawl that XLM-R was trained on.
HIGH_GIB = 20.0
MID_GIB = 2.0

# ISO 639-3, ISO 639-1, script, GiB of text in CC-100: Conneau et al. 2020 (arXiv 1911.02116), table 6. Romanised parts
# are left out, the two of Burmese and the two of Chinese (simplified, traditional) added up.
_CC100 = """
eng en Latn 300.8 | rus ru Cyrl 278.0 | ind id Latn 148.3 | vie vi Latn 137.3 | pes fa Arab 111.6 | swe sv Latn 85.0
ukr uk Cyrl 84.6  | tha th Thai 71.7  | jpn ja Jpan 69.3  | deu de Latn 66.6  | zho zh Hans 63.5  | ron ro Latn 61.4
hun hu Latn 58.4  | bul bg Cyrl 57.5  | fra fr Latn 56.8  | fin fi Latn 54.3  | kor ko Hang 54.2  | spa es Latn 53.3
por pt Latn 49.1  | nob no Latn 49.0  | ell el Grek 46.9  | dan da Latn 45.6  | pol pl Latn 44.6  | heb he Hebr 31.6
ita it Latn 30.2  | nld nl Latn 29.3  | arb ar Arab 28.0  | slk sk Latn 23.2  | tur tr Latn 20.9  | hrv hr Latn 20.5
hin hi Deva 20.2  | ces cs Latn 16.3  | lit lt Latn 13.7  | tam ta Taml 12.2  | slv sl Latn 10.3  | cat ca Latn 10.1
srp sr Cyrl 9.1   | kat ka Geor 9.1   | lvs lv Latn 8.8   | zsm ms Latn 8.5   | ben bn Beng 8.4   | mal ml Mlym 7.6
azj az Latn 6.5   | kaz kk Cyrl 6.4   | est et Latn 6.1   | urd ur Arab 5.7   | hye hy Armn 5.5   | sqi sq Latn 5.4
mkd mk Cyrl 4.8   | tel te Telu 4.7   | bel be Cyrl 4.3   | npi ne Deva 3.8   | sin si Sinh 3.6   | kan kn Knda 3.3
isl is Latn 3.2   | tgl tl Latn 3.1   | mon mn Cyrl 3.0   | glg gl Latn 2.9   | mar mr Deva 2.8   | lat la Latn 2.5
mya my Mymr 2.0   | eus eu Latn 2.0   | guj gu Gujr 1.9   | swa sw Latn 1.6   | khm km Khmr 1.5   | afr af Latn 1.3
kir ky Cyrl 1.2   | epo eo Latn 0.9   | amh am Ethi 0.8   | cym cy Latn 0.8   | pan pa Guru 0.8   | pus ps Arab 0.7
uzn uz Latn 0.7   | lao lo Laoo 0.6   | ory or Orya 0.6   | gle ga Latn 0.5   | som so Latn 0.4   | kur ku Latn 0.4
snd sd Arab 0.4   | uig ug Arab 0.4   | hau ha Latn 0.3   | yid yi Hebr 0.3   | san sa Deva 0.3   | fry fy Latn 0.2
jav jv Latn 0.2   | mlg mg Latn 0.2   | asm as Beng 0.1   | bos bs Latn 0.1   | bre br Latn 0.1   | gla gd Latn 0.1
orm om Latn 0.1   | sun su Latn 0.1   | xho xh Latn 0.1
"""
# Codes and names that other sets use for these.
_OTHER_NAMES = {
    "ara": "arb", "aze": "azj", "cmn": "zho", "uzb": "uzn", "nno": "nob", "english": "eng", "indonesian": "ind",
    "javanese": "jav", "sundanese": "sun",
}  # fmt: skip

# NusaX writes all of its languages in Latin letters; CC-100 has none of these.
_NUSAX = ("acehnese", "balinese", "banjarese", "buginese", "madurese", "minangkabau", "ngaju", "toba_batak")


@dataclass(frozen=True)
class Language:
    """script: ISO 15924, None where not known.   gib: of text in CC-100, None where it has none."""

    script: str | None
    gib: float | None

    @property
    def resource(self) -> Resource:
        """The class of the language by our rule."""
        if self.gib is None:
            return "unlisted"
        return "high" if self.gib >= HIGH_GIB else "mid" if self.gib >= MID_GIB else "low"


def _listed() -> dict[str, Language]:
    found: dict[str, Language] = {}
    for row in _CC100.replace("|", "\n").strip().splitlines():
        three, two, script, gib = row.split()
        found[three] = found[two] = Language(script, float(gib))
    found |= {other: found[name] for other, name in _OTHER_NAMES.items()}
    return found | dict.fromkeys(_NUSAX, Language("Latn", None))


_LISTED = _listed()


def language_of(subset: str) -> Language:
    """What is known of a subset's language.

    subset: `deu_Latn` (FLORES), `deu` (Tatoeba), `de`, `zh-Hant`, or a name as NusaX has them. A code's own script is
    believed.
    """
    code, _, script = subset.replace("-", "_").partition("_")
    known = _LISTED.get(subset) or _LISTED.get(code) or Language(None, None)
    return Language(script if len(script) == 4 else known.script, known.gib)
