// The heat map's colours: one sequential scale a theme, monotone in lightness, so that it reads without hue as well
// (in grey, on paper, with any kind of colour blindness).

// Stops as OKLCH: lightness 0–1, chroma, hue in degrees.
const STOPS = {
  light: [
    [0.972, 0.008, 235],
    [0.84, 0.07, 215],
    [0.63, 0.11, 235],
    [0.4, 0.11, 262],
  ],
  dark: [
    [0.25, 0.018, 258],
    [0.42, 0.085, 258],
    [0.65, 0.11, 232],
    [0.91, 0.075, 200],
  ],
};

const BLACK = [0, 0, 0];
const WHITE = [255, 255, 255];

/** The colour at t, 0 to 1, as [red, green, blue], 0 to 255. theme: "light" or "dark". */
export function heat(t, theme) {
  const stops = STOPS[theme];
  const at = Math.min(1, Math.max(0, t)) * (stops.length - 1);
  const below = Math.min(stops.length - 2, Math.floor(at));
  const [from, to] = [oklab(stops[below]), oklab(stops[below + 1])];
  return srgb(from.map((value, k) => value + (to[k] - value) * (at - below)));
}

/** Black or white, whichever is read better on this colour: never below 4.5 : 1. */
export function inkOn(background) {
  return contrast(BLACK, background) >= contrast(WHITE, background) ? BLACK : WHITE;
}

/** The contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio"). */
export function contrast(a, b) {
  const [dark, bright] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (bright + 0.05) / (dark + 0.05);
}

/** A colour as CSS has it. */
export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function luminance(colour) {
  const [red, green, blue] = colour.map((value) => linear(value / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function linear(value) {
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

function gamma(value) {
  return value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055;
}

function oklab([lightness, chroma, hue]) {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

// The matrices are those of CSS Color 4, "OKLab to linear-light sRGB".
function srgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const channels = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return channels.map((value) => Math.round(255 * Math.min(1, Math.max(0, gamma(value)))));
}
