// Files to keep. Masks are asked of the service again, at the threshold on the page: that is cheap,
// since it knows the photo, and exact where the 8-bit map on the page is rounded.

import { bytesOf } from "./masks.js";
import { segment } from "./requests.js";

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still be reading
}

/** A name for a file about `photo`: "photo.jpg", "the dog" -> "photo-the-dog.png". */
export function fileName(photo, part, suffix) {
  const stem = photo.name.replace(/\.[^.]*$/, "") || "photo";
  const words = part.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  return `${stem}-${words || "mask"}.${suffix}`;
}

export async function maskPng(photo, expression, threshold) {
  const options = { format: "png", threshold };
  const { answer } = await segment({ photo, expressions: [expression], options });
  return new Blob([bytesOf(answer.results[0].mask.data)], { type: "image/png" });
}

/**
 * The service's answer with COCO run lengths, and the threshold that it was asked with. `measured`:
 * the threshold at which the model's scores were; at another the answer says what they are.
 */
export async function rleDocument(photo, expressions, threshold, measured) {
  const options = { format: "rle", threshold };
  const { answer } = await segment({ photo, expressions, options });
  const note = threshold === measured ? {} : { score_note: noteOf(threshold, measured) };
  return { file_name: photo.name, threshold, ...note, ...answer };
}

const noteOf = (threshold, measured) =>
  `scores were measured at threshold ${measured}; at ${threshold} they are estimates`;

/** A document of COCO's format: one photo, a category for each expression. */
export async function cocoDocument(photo, expressions, threshold, measured) {
  const document = await rleDocument(photo, expressions, threshold, measured);
  const { model, image, results, score_note: note } = document;
  const facts = [`${model.name} ${model.version}`, `threshold ${threshold}`, ...(note ? [note] : [])];
  return {
    info: { description: facts.join(", "), date_created: new Date().toISOString() },
    licenses: [],
    images: [{ id: 1, file_name: photo.name, width: image.width, height: image.height }],
    categories: results.map(({ expression }, index) => (
      { id: index + 1, name: expression, supercategory: "expression" }
    )),
    annotations: results.map(({ mask, area, bbox, score }, index) => {
      const [left, top, right, bottom] = bbox ?? [0, 0, 0, 0];
      return {
        id: index + 1,
        image_id: 1,
        category_id: index + 1,
        segmentation: { size: mask.size, counts: mask.counts },
        area,
        bbox: [left, top, right - left, bottom - top],
        score,
        iscrowd: 0,
      };
    }),
  };
}

export function jsonBlob(document) {
  return new Blob([JSON.stringify(document, null, 1)], { type: "application/json" });
}
