// The script of a text, for its label and for the glyphs a browser chooses.

// A language whose glyphs suit the script, where the script alone doesn't decide: Han is drawn differently in China and
// Japan. Kana before Han: Japanese has both.
const SCRIPTS = [
  ["Japanese", "ja", /[\p{Script=Hiragana}\p{Script=Katakana}]/u],
  ["Hangul", "ko", /\p{Script=Hangul}/u],
  ["Han", "zh", /\p{Script=Han}/u],
  ["Arabic", "ar", /\p{Script=Arabic}/u],
  ["Hebrew", "he", /\p{Script=Hebrew}/u],
  ["Devanagari", "hi", /\p{Script=Devanagari}/u],
  ["Bengali", "bn", /\p{Script=Bengali}/u],
  ["Tamil", "ta", /\p{Script=Tamil}/u],
  ["Telugu", "te", /\p{Script=Telugu}/u],
  ["Thai", "th", /\p{Script=Thai}/u],
  ["Greek", "el", /\p{Script=Greek}/u],
  ["Cyrillic", "ru", /\p{Script=Cyrillic}/u],
  ["Georgian", "ka", /\p{Script=Georgian}/u],
  ["Armenian", "hy", /\p{Script=Armenian}/u],
  ["Ethiopic", "am", /\p{Script=Ethiopic}/u],
  ["Latin", "", /\p{Script=Latin}/u],
];

/** The script that most letters of a text are in: {name, lang}; lang is empty where the script tells no language. */
export function scriptOf(text) {
  const letters = [...text.slice(0, 2000)].filter((char) => /\p{L}/u.test(char));
  const counts = SCRIPTS.map(([name, lang, pattern]) => ({
    name,
    lang,
    count: letters.filter((char) => pattern.test(char)).length,
  }));
  const kana = counts[0].count > 0;
  const best = counts
    .map((one) => (kana && one.name === "Japanese" ? { ...one, count: one.count + counts[2].count } : one))
    .reduce((a, b) => (b.count > a.count ? b : a));
  return best.count ? { name: best.name, lang: best.lang } : { name: letters.length ? "Other" : "None", lang: "" };
}

const NAMES = new Intl.DisplayNames(["en"], { type: "language" });

/** What a text is labelled with: its language where that is known, else its script. */
export function labelOf(text, lang) {
  return lang ? NAMES.of(lang) : scriptOf(text).name;
}
