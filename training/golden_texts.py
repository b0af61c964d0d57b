"""The texts of golden.json: both roles, many scripts, and the lengths at which a path through the model changes."""

from service.recipe.prompts import Prompts, Role

# 25 sentences are some 700 tokens for the vocabulary of XLM-R and more for a smaller one: cut at 512 either way.
_LONG = " ".join(
    f"In week {week} the ferry carried {week * 37} passengers, {week * 5} bicycles and one very patient donkey across "
    f"the strait, and the captain wrote in her log that the wind had turned."
    for week in range(1, 26)
)

_TEXTS: tuple[tuple[Role, str], ...] = (
    ("query", "how long does fresh yeast keep in the fridge"),
    ("passage", "Fresh yeast keeps for about two weeks at 4 °C; brown and crumbly, it raises no dough any more."),
    ("query", "Lighthouse"),
    ("passage", "Der Leuchtturm wurde 1873 gebaut und erst ein Jahrhundert später an das Stromnetz angeschlossen."),
    ("query", "où réparer un vélo le dimanche à Marseille ?"),
    ("passage", "La biblioteca abre de lunes a sábado; los niños menores de doce años pueden llevarse cinco libros."),
    ("query", "почему осенью желтеют листья"),
    ("passage", "Вода замерзает при нуле градусов, но солёное озеро остаётся жидким и в сильный мороз."),
    ("query", "كيف أجدد جواز السفر من الخارج؟"),
    ("passage", "يقع السوق القديم خلف الميناء، ويبيع فيه الصيادون السمك كل صباح قبل شروق الشمس."),
    ("query", "बारिश में साइकिल की चेन को जंग से कैसे बचाएँ"),
    ("passage", "รถไฟขบวนสุดท้ายออกจากสถานีเวลาสี่ทุ่มครึ่ง ผู้โดยสารควรมาถึงก่อนอย่างน้อยสิบนาที"),
    ("query", "京都で雨の日に楽しめる場所"),
    ("passage", "这座桥建于明代，每逢春天河水上涨时，村民仍要绕行三里路才能过河。"),
    ("query", "김치를 오래 보관하는 방법"),
    ("passage", "🚲🌧️ rode home in the rain, soaked but happy 😄"),
    ("query", "¿Cuándo? 3 × 4 = 12; see https://example.org/a?b=c#d — naïve café №7"),
    ("passage", _LONG),
)


def golden_texts(prompts: Prompts) -> tuple[tuple[Role, str], ...]:
    """The texts with their roles; where the model has prompts, also a text that begins with its own prompt."""
    own: tuple[tuple[Role, str], ...] = ()
    if prompts.passage:
        own = (("passage", f"{prompts.passage}a text that begins with its prompt is not prompted twice"),)
    return (*_TEXTS, *own)
