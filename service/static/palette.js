// Okabe and Ito's colours, which most colour-blind people can tell apart, and one more. A mask's
// number in the picture and in the list says the same as its colour.
const COLOURS = [
  [0, 114, 178], [230, 159, 0], [0, 158, 115], [213, 94, 0], [204, 121, 167], [86, 180, 233],
  [240, 228, 66], [120, 94, 240],
];

/** The lowest number from 1 on that none of `taken` has. */
export function freeNumber(taken) {
  const used = new Set(taken);
  let number = 1;
  while (used.has(number)) number += 1;
  return number;
}

/** [r, g, b] of a mask's number; from the ninth on they come again. */
export function colourOf(number) {
  return COLOURS[(number - 1) % COLOURS.length];
}

/** Black or white, whichever can be read on `colour` (WCAG's relative luminance). */
export function inkOn(colour) {
  const [r, g, b] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

export function css(colour) {
  return `rgb(${colour.join(" ")})`;
}
