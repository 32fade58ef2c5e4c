/** A picture as the model sees it. The server makes it, by the code that it answers with. */

import { Failure, view } from "./api.js";

/** The bytes of a file; a folder, for one, has none. */
export async function readBytes(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Failure("unreadable", "This cannot be read: is it a folder?");
  }
}

/** The model's pixels, Uint8Array (height · width · 3), and the PNG that they are from. */
export async function modelView(file) {
  const png = await view(await readBytes(file));
  const bitmap = await createImageBitmap(png, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  return { pixels: Uint8Array.from({ length: width * height * 3 }, (_, i) => rgba[i + Math.floor(i / 3)]), png };
}

/** The part of a picture of this size, upright, that the model sees, in fractions: a rectangle in its middle. */
export function shownPart(image, { size, crop_ratio }) {
  const scale = Math.max(size.height / image.height, size.width / image.width) / crop_ratio;
  const width = Math.min(1, size.width / scale / image.width);
  const height = Math.min(1, size.height / scale / image.height);
  return { left: (1 - width) / 2, top: (1 - height) / 2, width, height };
}
