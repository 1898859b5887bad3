// Probability maps: what the service answers as an 8-bit PNG (probability = value / 255), here
// counted exactly and kept at the canvas's size, so that a new threshold needs no new answer.

const STRIP = 256; // rows that are unpacked at a time; a large photo's map would fill the memory

/**
 * A PNG in base64 -> {map, width, height, counts}: values at the canvas's size, and how many of the
 * photo's own pixels have each of the 256 values. A 1-bit mask is a map of 0 and 255.
 */
export async function readMap(base64, { width, height }) {
  const file = new Blob([bytesOf(base64)], { type: "image/png" });
  const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const counts = new Float64Array(256);
  const same = picture.width === width && picture.height === height;
  const map = new Uint8Array(width * height);
  eachStrip(picture, picture.width, picture.height, (values, at) => {
    for (let index = 0; index < values.length; index += 4) counts[values[index]] += 1;
    if (same) keepRed(values, map, at);
  });
  if (!same) eachStrip(picture, width, height, (values, at) => keepRed(values, map, at));
  picture.close();
  return { map, width, height, counts };
}

export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return bytes;
}

function eachStrip(picture, width, height, take) {
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.drawImage(picture, 0, -top, width, height);
    take(context.getImageData(0, 0, width, rows).data, top * width);
  }
}

function keepRed(values, map, at) {
  for (let index = 0, out = at; index < values.length; index += 4, out += 1) {
    map[out] = values[index];
  }
}

/** The area above `threshold`, in pixels of the photo. */
export function areaAbove(counts, threshold) {
  let area = 0;
  for (let value = 255; value > threshold * 255; value -= 1) area += counts[value];
  return area;
}

/**
 * Paint what lies above `threshold` onto `canvas`: filled, with a line of the colour inside a white
 * one, since either alone is lost on some photos. Answers a spot well inside for the mask's number,
 * or null if there is no mask.
 */
export function paint(canvas, { map, width, height }, threshold, colour, opacity) {
  canvas.width = width;
  canvas.height = height;
  const cut = threshold * 255;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const fill = packed(colour, opacity);
  const rings = [packed([255, 255, 255], 0.9), packed(colour, 1)];
  const line = Math.max(1, Math.round(Math.max(width, height) / 700));
  const reaches = [line, 3 * line];
  let best = 0;
  let spot = null;
  for (let y = 0, index = 0; y < height; y += 1) {
    let run = 0;
    for (let x = 0; x < width; x += 1, index += 1) {
      if (!(map[index] > cut)) {
        run = 0;
        continue;
      }
      run += 1;
      if (run > best) {
        best = run;
        spot = { x: x - run / 2, y };
      }
      let pixel = fill;
      for (let ring = 0; ring < 2; ring += 1) {
        const reach = reaches[ring];
        // The photo's border is no outline.
        const inner = (x < reach || map[index - reach] > cut) &&
          (x >= width - reach || map[index + reach] > cut) &&
          (y < reach || map[index - reach * width] > cut) &&
          (y >= height - reach || map[index + reach * width] > cut);
        if (!inner) {
          pixel = rings[ring];
          break;
        }
      }
      pixels[index] = pixel;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return spot;
}

function packed([red, green, blue], opacity) {
  const bytes = new Uint8ClampedArray([red, green, blue, Math.round(opacity * 255)]);
  return new Uint32Array(bytes.buffer)[0]; // in this machine's order, as ImageData is
}
