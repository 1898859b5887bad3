// A photo: its file as it will be sent, and a drawing of it at the size of the canvas.

import { Trouble, address } from "./requests.js";

// Enough pixels for crisp outlines of a small photo, few enough to repaint a large one at once.
const LEAST_SIDE = 960;
const MOST_SIDE = 1600;

/** The canvas's size for a picture of `width` x `height`. */
export function shownSize(width, height) {
  const longest = Math.max(width, height);
  const scale = Math.min(Math.max(longest, LEAST_SIDE), MOST_SIDE) / longest;
  return {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
  };
}

/** Reads a file or blob. Throws Trouble if it is too long or no picture that a browser shows. */
export async function readPhoto(blob, name) {
  const limit = Number(document.documentElement.dataset.maxBodyBytes);
  if (blob.size > limit) {
    throw new Trouble(
      "The file is too large.",
      `${name} has ${megabytes(blob.size)} MB, the service takes at most ${megabytes(limit)} MB. ` +
        "Choose a smaller or more compressed photo.",
    );
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Trouble(
      "That is not a picture.",
      `${name} cannot be shown. Choose a JPEG, PNG, WebP, GIF or BMP file that is whole.`,
    );
  }
  const { width, height } = bitmap;
  const shown = shownSize(width, height);
  if (shown.width < width) bitmap = await scaledDown(bitmap, shown);
  return { blob, name, width, height, shown, bitmap };
}

export async function readSample(name) {
  let response;
  try {
    response = await fetch(address(`static/samples/${name}`));
  } catch {
    throw new Trouble("The sample did not arrive.", "Check that the service still runs.");
  }
  if (!response.ok) throw new Trouble("The sample did not arrive.", "Choose another photo.");
  return readPhoto(await response.blob(), name);
}

async function scaledDown(bitmap, { width, height }) {
  const smaller = await createImageBitmap(bitmap, {
    resizeWidth: width, resizeHeight: height, resizeQuality: "high",
  });
  bitmap.close();
  return smaller;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
